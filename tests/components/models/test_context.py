"""Rows that ranks share: who holds which place, and that nothing is lost of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.megatron.batches import Batcher, MicroBatch
from components.megatron.cutting import Bounds
from components.models.base import load_family
from components.models.context import Context
from tests.components.megatron.helpers import random_samples, tiny_config


@given(st.integers(1, 6), st.integers(1, 5))
def test_every_place_is_one_ranks_and_causal_work_is_even(size: int, width: int) -> None:
    ranks = [Context(rank, size) for rank in range(size)]
    length = 2 * size * width
    held = [rank.mine(torch.arange(length), 0) for rank in ranks]
    assert sorted(torch.cat(held).tolist()) == list(range(length))
    assert len({int((places + 1).sum()) for places in held}) == 1
    for rank, places in zip(ranks, held, strict=True):
        local = rank.local(np.arange(length), length)
        assert np.flatnonzero(local >= 0).tolist() == sorted(places.tolist())
        assert places[local[local >= 0]].tolist() == np.flatnonzero(local >= 0).tolist()
        assert length % rank.multiple == 0


def micro_batches(family: str, size: int, share: bool) -> list[MicroBatch]:
    """The same samples as one micro-batch, of each rank."""
    found, samples = load_family(family), random_samples(family)
    bounds = Bounds(samples=64, share=share, hidden=4)
    cut = []
    for rank in range(size):
        batcher = Batcher(
            found, tiny_config(family), found.encoders, bounds, "cpu", length_multiple=6, context=Context(rank, size)
        )
        cut += batcher.cut(samples, torch.arange(len(samples)).float(), 0, 1)
    return cut


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("family", ["qwen3", "glm_omni"])
def test_parts_of_a_batch_are_the_batch(family: str, share: bool) -> None:
    (whole,), parts = micro_batches(family, 1, share), micro_batches(family, 3, share)
    rows, length = whole.inputs["input_ids"].shape
    assert (whole.inputs["attention_mask"] is not None) == share
    seen = dict.fromkeys(("here", "media"), 0)
    for rank, part in enumerate(parts):
        places = Context(rank, 3).mine(torch.arange(length), 0)
        assert torch.equal(part.inputs["position_ids"], whole.inputs["position_ids"])
        assert torch.equal(part.inputs["input_ids"], whole.inputs["input_ids"][:, places])
        if share:
            assert torch.equal(part.inputs["attention_mask"], whole.inputs["attention_mask"][:, :, places])
        flat = (torch.arange(rows)[:, None] * length + places).flatten()  # of its own places in the whole batch
        here = part.here_NR.bool()
        assert torch.equal(flat[part.slots_NR[here]], whole.slots_NR[here])
        for name in ("targets_NR", "mask_NR", "fresh_NR", "engine_NR", "advantages_N"):
            assert torch.equal(getattr(part, name), getattr(whole, name))
        seen["here"] += part.here_NR
        seen["media"] += _check_media(part.inputs.get("media"), whole.inputs.get("media"), flat)
    assert torch.equal(seen["here"], whole.mask_NR) and torch.equal(whole.here_NR, whole.mask_NR)
    assert seen["media"] == (len(whole.inputs["media"]["vision"]["slots"]) if family == "glm_omni" else 0)


def _check_media(part: Any, whole: Any, flat: torch.Tensor) -> int:
    """How many placeholders a part has; each takes the feature that it takes in the whole batch."""
    if not part:
        return 0
    mine, all_ = part["vision"], whole["vision"]
    assert mine["features"] == all_["features"]
    takes = dict(zip(all_["slots"].tolist(), all_["rows"].tolist(), strict=True))
    assert [takes[int(flat[slot])] for slot in mine["slots"]] == mine["rows"].tolist()
    return len(mine["slots"])
