"""How one Megatron tensor and its Hugging Face tensors map onto each other, under tensor parallelism, both ways.

Each layout has ``shard``: the full Hugging Face tensors -> this rank's Megatron tensor, and ``join``: the Megatron
tensors of all ranks, in rank order -> the full Hugging Face tensors. ``join`` after ``shard`` gives back every bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Layout(Protocol):
    """One row kind of a family's weight table."""

    @property
    def sharded(self) -> bool:
        """Whether tensor-parallel ranks hold different parts."""

    def shard(self, parts: Sequence[Tensor], rank: int, size: int) -> Tensor:
        """This rank's Megatron tensor from the full Hugging Face ``parts``."""

    def join(self, shards: Sequence[Tensor]) -> list[Tensor]:
        """The full Hugging Face tensors from every rank's Megatron tensor."""


@dataclass(frozen=True)
class Replicated:
    """The same tensor on every rank."""

    sharded: bool = False

    def shard(self, parts: Sequence[Tensor], rank: int, size: int) -> Tensor:
        """The one part as it is."""
        return parts[0]

    def join(self, shards: Sequence[Tensor]) -> list[Tensor]:
        """Any rank's copy; the first."""
        return [shards[0]]


@dataclass(frozen=True)
class Split:
    """One tensor cut along ``axis``: 0 for column-parallel, 1 for row-parallel linears."""

    axis: int
    sharded: bool = True

    def shard(self, parts: Sequence[Tensor], rank: int, size: int) -> Tensor:
        """The rank's slice along the axis."""
        return parts[0].chunk(size, self.axis)[rank]

    def join(self, shards: Sequence[Tensor]) -> list[Tensor]:
        """The slices put together."""
        return [_cat(shards, self.axis)]


@dataclass(frozen=True)
class Vocab:
    """Embedding or output rows [vocab, hidden], padded with zero rows until the ranks can share them evenly."""

    rows: int
    sharded: bool = True

    def shard(self, parts: Sequence[Tensor], rank: int, size: int) -> Tensor:
        """The rank's rows, the padding at the end of the last ranks."""
        full = parts[0]
        padding = full.new_zeros(padded_vocab(self.rows, size) - self.rows, *full.shape[1:])
        return _cat([full, padding], 0).chunk(size, 0)[rank]

    def join(self, shards: Sequence[Tensor]) -> list[Tensor]:
        """All rows without the padding."""
        return [_cat(shards, 0)[: self.rows]]


@dataclass(frozen=True)
class FusedQKV:
    """q, k, v weights or biases <-> one tensor in query groups: each group's queries, its key, its value."""

    heads: int
    groups: int
    sharded: bool = True

    def shard(self, parts: Sequence[Tensor], rank: int, size: int) -> Tensor:
        """The rank's query groups, fused."""
        grouped = _cat([part.unflatten(0, (self.groups, -1)) for part in parts], 1)
        return grouped.chunk(size, 0)[rank].flatten(0, 1)

    def join(self, shards: Sequence[Tensor]) -> list[Tensor]:
        """Full q, k and v."""
        grouped = _cat(shards, 0).unflatten(0, (self.groups, -1))
        queries = self.heads // self.groups
        head_dim = grouped.shape[1] // (queries + 2)
        return [part.flatten(0, 1) for part in grouped.split([queries * head_dim, head_dim, head_dim], 1)]


@dataclass(frozen=True)
class Gated:
    """Gate and up projections, two tensors or (``merged``) one of both halves, weight or bias.

    Megatron keeps each rank's gate slice above its up slice, so the ranks' tensors are re-cut before they are joined.
    """

    merged: bool
    sharded: bool = True

    def shard(self, parts: Sequence[Tensor], rank: int, size: int) -> Tensor:
        """The rank's gate rows above its up rows."""
        halves = parts[0].chunk(2, 0) if self.merged else parts
        return _cat([half.chunk(size, 0)[rank] for half in halves], 0)

    def join(self, shards: Sequence[Tensor]) -> list[Tensor]:
        """Gate and up, or the merged tensor."""
        gates, ups = zip(*(shard.chunk(2, 0) for shard in shards), strict=True)
        halves = [_cat(gates, 0), _cat(ups, 0)]
        return [_cat(halves, 0)] if self.merged else halves


def padded_vocab(rows: int, size: int) -> int:
    """Vocabulary rows rounded up to a multiple of the tensor-parallel size."""
    return -(-rows // size) * size


def _cat(tensors: Sequence[Tensor], axis: int) -> Tensor:
    import torch

    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), axis)
