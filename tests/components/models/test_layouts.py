"""Layouts: join after shard gives every bit back, at any tensor-parallel size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.models.layouts import FusedQKV, Gated, Layout, Replicated, Split, Vocab, padded_vocab


def round_trip(layout: Layout, parts: list[torch.Tensor], size: int) -> list[torch.Tensor]:
    ranks = size if layout.sharded else 1
    shards = [layout.shard(parts, rank, size) for rank in range(ranks)]
    assert len({shard.shape for shard in shards}) == 1
    return layout.join(shards)


@given(st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(1, 3), st.sampled_from([(), (5,)]), st.integers(1, 4))
def test_fused_qkv(size: int, queries: int, groups: int, rest: tuple[int, ...], head_dim: int) -> None:
    groups *= size
    parts = [torch.randn(n * head_dim, *rest) for n in (queries * groups, groups, groups)]
    for given_, back in zip(parts, round_trip(FusedQKV(queries * groups, groups), parts, size), strict=True):
        assert torch.equal(given_, back)


@given(st.sampled_from([1, 2, 4]), st.integers(1, 3), st.sampled_from([(), (5,)]))
def test_gated_weight_and_bias_merged_or_not(size: int, width: int, rest: tuple[int, ...]) -> None:
    gate, up = (torch.randn(width * size, *rest) for _ in range(2))
    assert all(map(torch.equal, round_trip(Gated(merged=False), [gate, up], size), [gate, up]))
    merged = torch.cat([gate, up])
    assert torch.equal(round_trip(Gated(merged=True), [merged], size)[0], merged)
    shard = Gated(merged=True).shard([merged], 0, size)
    assert torch.equal(shard, torch.cat([gate[:width], up[:width]]))


@given(st.integers(1, 20), st.integers(1, 8))
def test_vocab_is_padded_evenly_and_trimmed(rows: int, size: int) -> None:
    table = torch.randn(rows, 3)
    assert padded_vocab(rows, size) % size == 0 and padded_vocab(rows, size) - rows < size
    assert torch.equal(round_trip(Vocab(rows), [table], size)[0], table)


@pytest.mark.parametrize("layout", [Split(0), Split(1), Replicated()])
def test_split_and_replicated(layout: Layout) -> None:
    tensor = torch.randn(4, 8)
    assert torch.equal(round_trip(layout, [tensor], 2)[0], tensor)
