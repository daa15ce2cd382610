"""Micro-batches: who shares a row, what looks at what, which place predicts which token."""

from __future__ import annotations

import json
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.megatron.batches import Batcher, MicroBatch, minibatches
from components.megatron.cutting import Bounds, cut_up, make_packs, row_length
from components.models.base import load_family
from slime_launch.errors import ComponentError
from slime_launch.types import Sample
from tests.components.megatron.helpers import ROOT, make_sample, random_samples, show_later


def one_batch(family: str, samples: list[Sample]) -> MicroBatch:
    config = json.loads((ROOT / "components" / "models" / family / "configs" / "tiny.json").read_text())
    found = load_family(family)
    batcher = Batcher(found, config, found.encoders, Bounds(samples=64, hidden=4), "cpu")
    (batch,) = batcher.cut(samples, torch.arange(len(samples)).float(), 0, 1)
    return batch


def test_samples_of_one_prompt_share_a_row_when_it_pays() -> None:
    long, short = list(range(30, 60)), [30]
    samples = [make_sample(0, i, long, [70 + i, 71]) for i in range(3)]
    samples += [make_sample(1, i, short, [80, 81, 82, 83]) for i in range(3)]
    packs = make_packs(samples, Bounds(samples=64))
    assert sorted(map(sorted, packs)) == [[0, 1, 2], [3], [4], [5]]
    assert sorted(map(len, make_packs(samples[:3], Bounds(samples=2)))) == [1, 2]


def test_equal_ids_with_different_images_stay_apart() -> None:
    samples = random_samples("glm_omni", groups=2, size=2)[2:]
    other = samples[1]
    assert make_packs(samples, Bounds(samples=64)) == [[0, 1]]
    other.media = other.media | {"pixel_values": other.media["pixel_values"] + 1}
    assert sorted(make_packs(samples, Bounds(samples=64))) == [[0], [1]]


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


def test_images_of_responses_in_a_shared_row() -> None:
    """The prompt's once, each of the responses' once however many show it, each in its own places and positions."""
    samples = show_later(random_samples("glm_omni", groups=3)[8:])
    batch = one_batch("glm_omni", samples)
    ids, media = batch.inputs["input_ids"].flatten(), batch.inputs["media"]["vision"]
    assert batch.inputs["input_ids"].shape[0] == 1
    assert media["inputs"]["image_grid_thw"].tolist() == [[1, 4, 4], [1, 2, 6], [1, 4, 4]]
    assert (ids[media["slots"]] == 14).all() and len(media["slots"]) == int((ids == 14).sum()) == 4 + 3 + 3 * 4
    assert media["rows"].tolist() == [0, 1, 2, 3, 4, 5, 6, *[7, 8, 9, 10] * 3]
    prompt, start = samples[0].prompt_ids, len(samples[0].prompt_ids)
    for sample in samples:
        end = start + len(sample.response_ids)
        alone = one_batch("glm_omni", [sample]).inputs["position_ids"][:, 0]
        assert torch.equal(batch.inputs["position_ids"][:, 0, start:end], alone[:, len(prompt) :])
        assert torch.equal(batch.inputs["position_ids"][:, 0, : len(prompt)], alone[:, : len(prompt)])
        start = end
    samples[1].response_ids.pop(0)
    samples[1].logprobs.pop(), samples[1].loss_mask.pop(), samples[1].weight_versions.pop()
    with pytest.raises(ComponentError, match=r"sample 1 of group 2: .* which are not placeholders \(token \[14\]\)"):
        one_batch("glm_omni", samples)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[Sample], int, Bounds]:
    """Groups of samples of any lengths, data-parallel ranks, and any bounds."""
    samples = []
    for group in range(draw(st.integers(1, 5))):
        prompt = [30 + group] * draw(st.integers(1, 30))
        lengths = draw(st.lists(st.integers(1, 20), min_size=1, max_size=6))
        samples += [make_sample(group, index, prompt, [40] * length) for index, length in enumerate(lengths)]
    tokens = draw(st.none() | st.integers(1, 200))
    bounds = Bounds(draw(st.integers(1, 10)), tokens, draw(st.booleans()), draw(st.integers(1, 4)), hidden=8)
    return samples, draw(st.integers(1, min(4, len(samples)))), bounds


@given(batches())
def test_every_sample_is_in_one_micro_batch_within_the_bounds(made: tuple[list[Sample], int, Bounds]) -> None:
    samples, parts, bounds = made
    ranks = cut_up(samples, parts, bounds)
    assert len(ranks) == parts and len({len(runs) for runs in ranks}) == 1
    assert len(ranks[0]) % bounds.multiple == 0 and all(map(any, ranks))
    packs = [pack for runs in ranks for run in runs for pack in run]
    assert sorted(chain.from_iterable(packs)) == list(range(len(samples)))
    assert all(len({samples[number].group for number in pack}) == 1 for pack in packs)
    assert bounds.share or max(map(len, packs)) == 1
    for run in filter(None, chain.from_iterable(ranks)):
        longest, held = max(row_length(samples, pack) for pack in run), sum(map(len, run))
        assert bounds.fits(len(run), held, longest) or held == 1


def test_unequal_lengths_are_balanced() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(5, 1, 256).astype(int) + 1
    samples = [make_sample(i // 8, i % 8, [30 + i // 8] * 40, [40] * int(n)) for i, n in enumerate(lengths)]
    bounds = Bounds(1, 4096, hidden=1024)
    loads = [
        sum(bounds.cost(row_length(samples, pack)) for run in runs for pack in run)
        for runs in cut_up(samples, 8, bounds)
    ]
    assert max(loads) <= 1.05 * sum(loads) / 8


def test_a_rank_without_enough_samples_repeats_one_that_counts_nothing() -> None:
    samples = [make_sample(i, 0, [30], [40] * length) for i, length in enumerate((50, 9, 9, 9))]
    batcher = Batcher(load_family("qwen3"), {}, {}, Bounds(1, share=False), "cpu")
    ranks = [batcher.cut(samples, torch.arange(4), part, 2) for part in range(2)]
    assert [len(rank) for rank in ranks] == [3, 3]
    counted = [[float(batch.mask_NR.sum()) for batch in rank] for rank in ranks]
    assert sorted(map(sorted, counted)) == [[0.0, 0.0, 50.0], [9.0, 9.0, 9.0]]


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
        batcher = Batcher(load_family("qwen3"), {}, {}, Bounds(samples=4), "cpu")
        batcher.cut([make_sample(0, 0, [1], [2])], torch.zeros(1), 0, 2)
