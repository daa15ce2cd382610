"""Micro-batches: who shares a row, what looks at what, which place predicts which token."""

from __future__ import annotations

import json
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.megatron.batches import Batcher, MicroBatch, fill, make_packs, minibatches
from components.models.base import load_family
from slime_launch.errors import ComponentError
from slime_launch.types import Sample
from tests.components.megatron.helpers import ROOT, make_sample, random_samples


def one_batch(family: str, samples: list[Sample]) -> MicroBatch:
    config = json.loads((ROOT / "components" / "models" / family / "configs" / "tiny.json").read_text())
    found = load_family(family)
    batcher = Batcher(found, config, found.encoders, 64, "cpu", share=True)
    (batch,) = batcher.cut(samples, torch.arange(len(samples)).float(), 0, 1)
    return batch


def test_samples_of_one_prompt_share_a_row_when_it_pays() -> None:
    long, short = list(range(30, 60)), [30]
    samples = [make_sample(0, i, long, [70 + i, 71]) for i in range(3)]
    samples += [make_sample(1, i, short, [80, 81, 82, 83]) for i in range(3)]
    packs = make_packs(samples, range(6), 64)
    assert sorted(map(sorted, packs)) == [[0, 1, 2], [3], [4], [5]]
    assert sorted(map(len, make_packs(samples[:3], range(3), 2))) == [1, 2]


def test_equal_ids_with_different_images_stay_apart() -> None:
    samples = random_samples("glm_omni", groups=2, size=2)[2:]
    other = samples[1]
    assert make_packs(samples, range(2), 64) == [[0, 1]]
    other.media = other.media | {"pixel_values": other.media["pixel_values"] + 1}
    assert sorted(make_packs(samples, range(2), 64)) == [[0], [1]]


def test_a_shared_row() -> None:
    prompt = list(range(30, 40))
    batch = one_batch("qwen3", [make_sample(0, 0, prompt, [70, 71]), make_sample(0, 1, prompt, [80, 81, 82])])
    assert batch.inputs["input_ids"].tolist() == [[*prompt, 70, 71, 80, 81, 82]]
    assert batch.inputs["position_ids"][:, 0].tolist() == [[*range(12), 10, 11, 12]] * 3
    assert batch.slots_NR.tolist() == [[9, 10, 0], [9, 12, 13]]
    assert batch.targets_NR.tolist() == [[70, 71, 0], [80, 81, 82]]
    assert batch.mask_NR.tolist() == [[1, 1, 0], [1, 1, 1]]
    looks = ~batch.inputs["attention_mask"][0, 0]
    assert looks[11].nonzero().flatten().tolist() == list(range(12))
    assert looks[14].nonzero().flatten().tolist() == [*range(10), 12, 13, 14]


def test_an_image_of_a_shared_row_is_encoded_once() -> None:
    samples = random_samples("glm_omni", groups=2, size=4)
    part = one_batch("glm_omni", samples)
    media = part.inputs["media"]["vision"]
    assert len(media["inputs"]["image_grid_thw"]) == 2
    ids = part.inputs["input_ids"].flatten()
    assert (ids[media["slots"]] == 14).all() and len(media["slots"]) == int((ids == 14).sum())
    assert media["rows"].max() == 7


@given(st.lists(st.integers(1, 5), min_size=1, max_size=20), st.integers(5, 9))
def test_fill_keeps_order_and_bound(lengths: list[int], size: int) -> None:
    packs = [[number] * length for number, length in enumerate(lengths)]
    runs = list(fill(packs, size))
    assert list(chain.from_iterable(runs)) == packs
    assert all(0 < sum(map(len, run)) <= size for run in runs)


@given(st.integers(1, 40), st.integers(1, 10), st.integers(0, 3))
def test_every_sample_is_in_one_micro_batch_of_one_rank(count: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(16, 112, 12).tolist() for _ in range(4)]
    samples = [make_sample(i % 4, i, prompts[i % 4], rng.integers(16, 112, 1 + i % 3).tolist()) for i in range(count)]
    family = load_family("qwen3")
    batcher = Batcher(family, {}, {}, size, "cpu", share=True)
    parts = min(2, count)
    batches = [batch for part in range(parts) for batch in batcher.cut(samples, torch.arange(count), part, parts)]
    assert sorted(chain.from_iterable(batch.advantages_N.tolist() for batch in batches)) == list(range(count))
    assert all(len(batch.advantages_N) <= size for batch in batches)


@given(st.integers(1, 50), st.integers(1, 10))
def test_minibatches_cover_the_rollout_evenly(count: int, parts: int) -> None:
    if count < parts:
        with pytest.raises(ComponentError, match="num_minibatches"):
            list(minibatches(count, parts))
        return
    runs = list(minibatches(count, parts))
    assert list(chain.from_iterable(runs)) == list(range(count))
    assert max(map(len, runs)) - min(map(len, runs)) <= 1


def test_fewer_samples_than_ranks_are_refused() -> None:
    with pytest.raises(ComponentError, match="data-parallel"):
        Batcher(load_family("qwen3"), {}, {}, 4, "cpu", True).cut([make_sample(0, 0, [1], [2])], torch.zeros(1), 0, 2)
