"""What a training step keeps between forward and backward.

The method is that of Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models"
(arXiv:2205.05198), section 4: add up, operation by operation, what each keeps for its backward. Theirs counts GPT-3's
layer, 16-bit and with dropout: sbh(34 + 5as/h). The layer here is Megatron-Core 0.16.1's local specification, nothing
fused: RMSNorm, SwiGLU, grouped queries, rotary positions, no dropout, attention as two matrix products around a
softmax. So the square of the row's length counts, as in the paper's fifth term, unless ``recompute`` takes it out.
The fp32 column is what a CPU run keeps, to the byte but for masks and norms' scales; the bf16 column follows the same
operations with CUDA's norm kernel and a float32 softmax, and the mixture of experts assumes even routing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from slime_launch.sizes.architectures import Shape
from slime_launch.sizes.memory import Layout, Precision, stage_layers

Recompute = Literal["none", "selective", "full"]
FLOAT32 = 4
ANGLES = 4
"""Cosines and sines that each layer keeps: for queries and for keys."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch: ``rows`` of ``length`` tokens; ``scored`` of all these tokens get a log-probability.

    in_flight: micro-batches that a pipeline holds at once; None: as many as Megatron's 1F1B schedule can.
    """

    rows: int
    length: int
    scored: int
    in_flight: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return self.rows * self.length


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes. kept: what autograd keeps from forward to backward. working: the largest buffers alive beside it."""

    kept: int
    working: int

    @property
    def total(self) -> int:
        """The peak."""
        return self.kept + self.working


def activations(
    shape: Shape, batch: Batch, layout: Layout, precision: Precision, stage: int = 0, recompute: Recompute = "none"
) -> Activations:
    """The peak of one rank's pipeline stage over a step.

    recompute: Megatron's recompute_granularity: none; selective, the attention core alone; full, whole layers one by
    one.
    """
    sparse = [shape.sparse[layer] for layer in stage_layers(shape.num_hidden_layers, layout)[stage]]
    each = [layer_bytes(shape, batch.length, is_sparse, layout, precision, recompute) for is_sparse in sparse]
    if recompute == "full":
        inputs = len(each) * shape.hidden_size * precision.activations
        kept, again = inputs, max(each, default=0) * batch.tokens
    else:
        kept, again = sum(each), 0
    flying = min(layout.pp - stage, batch.in_flight or layout.pp)
    kept *= batch.tokens * flying
    working = again + _scores(shape, batch, layout, precision)
    if stage == layout.pp - 1:
        kept += _head_kept(shape, batch, layout, precision)
        working += _head_working(shape, batch, layout, precision)
    return Activations(kept=kept, working=working)


def layer_bytes(
    shape: Shape, length: int, sparse: bool, layout: Layout, precision: Precision, recompute: Recompute = "none"
) -> int:
    """Kept by one layer for each token."""
    norm = 2 * precision.activations + precision.normalized
    post_norm = precision.activations + precision.normalized
    hidden = shape.hidden_size * (2 * norm + (2 * post_norm if shape.post_norms else 0))
    attention = _attention_bytes(shape, length, layout, precision, recompute == "selective")
    feed_forward = _moe_numbers(shape, layout) if sparse else 5 * shape.intermediate_size // layout.tp
    return hidden + attention + feed_forward * precision.activations


def _attention_bytes(shape: Shape, length: int, layout: Layout, precision: Precision, selective: bool) -> int:
    queries = shape.num_attention_heads * shape.head // layout.tp
    keys = max(shape.kv_heads // layout.tp, 1) * shape.head
    repeats = shape.num_attention_heads > shape.kv_heads
    fused = queries + 2 * keys
    numbers = 2 * queries + ANGLES * int(shape.head * shape.partial_rotary_factor)  # rotated queries, the context
    normalized = 0
    if shape.use_qk_norm:
        # Taking the queries out of the fused tensor copies them where a group has several.
        numbers += fused + (queries if repeats else 0)
        normalized = queries + keys
    if selective:
        numbers += keys + (0 if shape.use_qk_norm else fused)  # rotated keys; the values are a view of the fused tensor
        probabilities = 0
    else:
        numbers += 2 * queries if repeats else keys + (0 if shape.use_qk_norm else fused)
        probabilities = shape.num_attention_heads // layout.tp * length * precision.probability
    return numbers * precision.activations + normalized * precision.normalized + probabilities


def _moe_numbers(shape: Shape, layout: Layout) -> int:
    """Each token's copies for its experts, their feed-forward with the routing weights, the shared expert, the scores.

    With even routing each rank of expert parallelism works on as many copies as its own tokens make.
    """
    expert = shape.hidden_size + 6 * shape.moe_intermediate_size // layout.tp
    shared = 5 * shape.n_shared_experts * shape.moe_intermediate_size // layout.tp
    return shape.num_experts_per_tok * expert + shared + 4 * shape.num_experts


def _scores(shape: Shape, batch: Batch, layout: Layout, precision: Precision) -> int:
    """Attention's score buffer, which Megatron keeps for good."""
    return shape.num_attention_heads // layout.tp * batch.tokens * batch.length * precision.activations


def _head_kept(shape: Shape, batch: Batch, layout: Layout, precision: Precision) -> int:
    """The last norm, the output layer's input, and the scored tokens' logits in float32."""
    norm = 2 * precision.activations + precision.normalized
    return batch.tokens * shape.hidden_size * norm + batch.scored * _columns(shape, layout) * FLOAT32


def _head_working(shape: Shape, batch: Batch, layout: Layout, precision: Precision) -> int:
    """The larger of the loss's forward: all tokens' logits, the scored ones' probabilities and their products, and the
    unmasked ones where some columns are masked (padding, the placeholders of a tower's media); and its backward: the
    gradients of the picked logits and of the partition function, with the two steps to the latter."""
    masked = shape.vision is not None or shape.vocab_size % layout.tp > 0
    scored = batch.scored * FLOAT32
    forward = batch.tokens * precision.activations + (3 if masked else 2) * scored
    return max(forward, 4 * scored) * _columns(shape, layout)


def _columns(shape: Shape, layout: Layout) -> int:
    return -(-shape.vocab_size // layout.tp)
