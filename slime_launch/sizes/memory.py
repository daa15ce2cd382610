"""What an estimate of memory is made of, and how ranks split tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from slime_launch.sizes.parameters import Parameters, Tensor, Tensors


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one process (CPU) or of one GPU.

    activations: what autograd keeps and the largest buffers beside it. fixed: what the process takes with no model in
    it: measured constants on CPU, none on CUDA, see ``slime_launch.sizes.measured``.
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    kv_cache: int = 0
    activations: int = 0
    fixed: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum((self.weights, self.gradients, self.optimizer, self.kv_cache, self.activations, self.fixed))


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Parallel sizes of one model: tensor, pipeline, data, context and expert, the last inside tp x dp.

    first, last: layers of the first and the last pipeline stage where they are given.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    cp: int = 1
    ep: int = 1
    first: int | None = None
    last: int | None = None


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Bytes a number takes in the trainer.

    optimizer: Adam's two moments, and the float32 copy of the weights where they are smaller.
    normalized: what a norm keeps for its backward beside its input and output; torch's own RMSNorm on CPU keeps the
        normalized values, its CUDA kernel recomputes them.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    normalized: int


PRECISIONS: Mapping[str, Precision] = {
    "fp32": Precision(weights=4, gradients=4, optimizer=8, activations=4, normalized=4),
    "bf16": Precision(weights=2, gradients=4, optimizer=12, activations=2, normalized=0),
}


def local_size(tensor: Tensor, layout: Layout, kv_heads: int) -> int:
    """Numbers of it on one rank of tensor and expert parallelism; the largest rank's where they do not divide."""
    ranks = {"whole": 1, "tp": layout.tp, "kv": min(layout.tp, kv_heads), "experts": layout.tp * layout.ep}
    return -(-tensor.size // ranks[tensor.split])


def stage_layers(layers: int, layout: Layout) -> list[range]:
    """The layers of each pipeline stage; what does not divide goes to late stages, the last one excepted."""
    first, last = ([] if given is None else [given] for given in (layout.first, layout.last))
    left, stages = layers - sum(first) - sum(last), layout.pp - len(first) - len(last)
    sizes = [left // stages] * stages if stages > 0 else []
    for extra in range(left % stages if stages > 0 else 0):
        sizes[max(stages - 2 - extra, 0)] += 1
    sizes = [*first, *sizes, *last]
    starts = [sum(sizes[:stage]) for stage in range(len(sizes))]
    return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def stage_tensors(parameters: Parameters, stage: int, layout: Layout) -> Iterator[tuple[str, Tensors]]:
    """(prefix of their names, tensors) of one pipeline stage: the towers and the embedding on the first, the head on
    the last. A tied head is a copy of the embedding when it is on another stage than that."""
    if stage == 0:
        yield "", parameters.encoder + parameters.embedding
    sparse = parameters.shape.sparse
    for layer in stage_layers(len(sparse), layout)[stage]:
        yield f"decoder.layers.{layer}.", parameters.moe_layer if sparse[layer] else parameters.dense_layer
    if stage == layout.pp - 1:
        tied = parameters.embedding if parameters.shape.tied and layout.pp > 1 else ()
        yield "", parameters.final_norm + (parameters.lm_head or tied)


def is_frozen(name: str, patterns: Sequence[str], train_only: Sequence[str] = ()) -> bool:
    """Whether ``model.freeze`` covers a parameter, or ``model.train_only`` does not: ``re.search``, as the trainer."""
    if train_only:
        return not any(re.search(pattern, name) for pattern in train_only)
    return any(re.search(pattern, name) for pattern in patterns)
