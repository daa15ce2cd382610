"""What a training step keeps between forward and backward.

The method is that of Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models"
(arXiv:2205.05198), section 4: add up, operation by operation, what each keeps for its backward. Theirs counts GPT-3's
layer, 16-bit and with dropout: sbh(34 + 5as/h). The layer here is Megatron-Core 0.16.1's local specification, nothing
fused: RMSNorm, SwiGLU, grouped queries, rotary positions, no dropout, attention by torch's tiled kernel, which keeps
one number a row of scores: the paper's fifth term, the square of the row's length, is gone. The vocabulary's logits are
there for ``chunk`` tokens at a time. The fp32 column is what a CPU run keeps but for masks and norms' scales; the bf16
column follows the same operations with CUDA's norm kernel, and the mixture of experts assumes even routing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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

    chunk: tokens whose logits are there at once. in_flight: micro-batches that a pipeline holds at once; None: as many
    as Megatron's 1F1B schedule can.
    """

    rows: int
    length: int
    scored: int
    chunk: int = 1024
    in_flight: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return self.rows * self.length

    def shared(self, ranks: int) -> Batch:
        """One rank's part of rows that so many share; at worst all of its tokens are scored."""
        length = -(-self.length // ranks)
        return replace(self, length=length, scored=min(self.scored, self.rows * length))


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

    recompute: none; selective, the inside of the feed-forward layers; full, whole layers one by one.
    """
    batch = batch.shared(layout.cp)
    sparse = [shape.sparse[layer] for layer in stage_layers(shape.num_hidden_layers, layout)[stage]]
    each = [layer_bytes(shape, is_sparse, layout, precision) for is_sparse in sparse]
    inside = [_feed_forward(shape, is_sparse, layout) * precision.activations for is_sparse in sparse]
    kept, again = sum(each), 0
    if recompute == "full":
        kept, again = len(each) * shape.hidden_size * precision.activations, max(each, default=0) * batch.tokens
    elif recompute == "selective":
        kept, again = kept - sum(inside), max(inside, default=0) * batch.tokens
    flying = min(layout.pp - stage, batch.in_flight or layout.pp)
    kept *= batch.tokens * flying
    working = again
    if stage == layout.pp - 1:
        kept += _head_kept(shape, batch, layout, precision)
        working += _head_working(shape, batch, layout, precision)
    return Activations(kept=kept, working=working)


def layer_bytes(shape: Shape, sparse: bool, layout: Layout, precision: Precision) -> int:
    """Kept by one layer for each token."""
    norm = 2 * precision.activations + precision.normalized
    post_norm = precision.activations + precision.normalized
    hidden = shape.hidden_size * (2 * norm + (2 * post_norm if shape.post_norms else 0))
    attention = _attention_bytes(shape, layout, precision)
    return hidden + attention + _feed_forward(shape, sparse, layout) * precision.activations


def _feed_forward(shape: Shape, sparse: bool, layout: Layout) -> int:
    return _moe_numbers(shape, layout) if sparse else 5 * shape.intermediate_size // layout.tp


def _attention_bytes(shape: Shape, layout: Layout, precision: Precision) -> int:
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
    if layout.cp > 1:
        # Keys and values of whole rows, repeated for the queries of a group once for each of this rank's two chunks.
        numbers += queries * (2 * layout.cp + 1) if repeats else 2 * keys * layout.cp
    else:
        # Keys and values are repeated for the queries of a group; else the values are a view of the fused tensor.
        numbers += 2 * queries if repeats else keys + (0 if shape.use_qk_norm else fused)
    row_sums = shape.num_attention_heads // layout.tp * FLOAT32
    return numbers * precision.activations + normalized * precision.normalized + row_sums


def _moe_numbers(shape: Shape, layout: Layout) -> int:
    """Each token's copies for its experts, their feed-forward with the routing weights, the shared expert, the scores.

    With even routing each rank of expert parallelism works on as many copies as its own tokens make.
    """
    expert = shape.hidden_size + 6 * shape.moe_intermediate_size // layout.tp
    shared = 5 * shape.n_shared_experts * shape.moe_intermediate_size // layout.tp
    return shape.num_experts_per_tok * expert + shared + 4 * shape.num_experts


def _head_kept(shape: Shape, batch: Batch, layout: Layout, precision: Precision) -> int:
    """The last norm, the scored tokens' hidden states, and their probabilities where they are one chunk."""
    norm = 2 * precision.activations + precision.normalized
    probabilities = batch.scored * _columns(shape, layout) * FLOAT32 if batch.scored <= batch.chunk else 0
    return (batch.tokens * norm + batch.scored * precision.activations) * shape.hidden_size + probabilities


def _head_working(shape: Shape, batch: Batch, layout: Layout, precision: Precision) -> int:
    """A chunk's logits and their exponentials, and the gradient of the output layer's weight in float32."""
    columns = _columns(shape, layout)
    return (2 * min(batch.scored, batch.chunk) + shape.hidden_size) * columns * FLOAT32


def _columns(shape: Shape, layout: Layout) -> int:
    return -(-shape.vocab_size // layout.tp)
