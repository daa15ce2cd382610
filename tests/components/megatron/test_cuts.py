"""However a batch is cut, the loss and the gradients are the same; images or none; memory does not grow."""

from __future__ import annotations

import gc
from collections import UserDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.megatron.cutting import Bounds
from components.megatron.trainer import MegatronTrainer
from slime_launch.types import Sample, digest
from tests.components.megatron.helpers import OPTIM, image_prompt, make_sample, trainer_settings, write_random

LOSS, TOKENS = "loss", "tokens"
GRIDS: tuple[list[tuple[int, int, int]], ...] = ([], [(1, 4, 4)], [(1, 2, 6), (1, 6, 4)], [], [(1, 4, 8)])


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MegatronTrainer]:
    folder = write_random(tmp_path_factory.mktemp("checkpoint"), "glm_omni")
    started = MegatronTrainer(**trainer_settings(folder, "glm_omni", optim=OPTIM | {"lr": 1e-4}))
    started.start({})
    yield started
    started.stop()


def mixed(seed: int, size: int = 3) -> list[Sample]:
    """Groups of text alone, of one image and of several of unequal grids; unequal lengths, masks with holes."""
    rng = np.random.default_rng(seed)
    samples = []
    for group, grids in enumerate(GRIDS):
        prompt, media = image_prompt(rng, grids, int(rng.integers(3, 20)))
        media = media if grids else {}
        for index in range(size):
            response = rng.integers(16, 112, int(rng.integers(1, 12))).tolist()
            mask = [1, *rng.integers(0, 2, len(response) - 1).tolist()]
            samples.append(make_sample(group, index, prompt, response, media=media, loss_mask=mask))
    return samples


def computed(
    trainer: MegatronTrainer, samples: Sequence[Sample], bounds: Bounds, ranks: int
) -> tuple[float, dict[str, Any]]:
    """(Mean loss, gradients by name) of what ``ranks`` data-parallel ranks would compute, one after the other."""
    parts = trainer._ready()
    batcher = replace(parts.batcher, bounds=bounds)
    advantages_N = torch.linspace(-1.0, 1.5, len(samples))
    loss, tokens, total = 0.0, 0.0, {}
    for rank in range(ranks):
        parts.optimizer.zero_grad()
        report = parts.stepper.gradients(batcher.cut(samples, advantages_N, rank, ranks))
        loss, tokens = loss + report.sums[LOSS], tokens + report.sums[TOKENS]
        for name, parameter in parts.chunks[0].named_parameters():
            if parameter.requires_grad:
                # Megatron divides by the tokens of what it saw; the ranks of a real group see all of them.
                total[name] = total.get(name, 0.0) + parameter.main_grad.double() * report.sums[TOKENS]
    return loss / tokens, {name: value / tokens for name, value in total.items()}


def assert_same(mine: tuple[float, dict[str, Any]], theirs: tuple[float, dict[str, Any]]) -> None:
    assert mine[0] == pytest.approx(theirs[0], abs=1e-6)
    for name, grad in theirs[1].items():
        assert (mine[1][name] - grad).norm() <= 1e-5 * grad.norm(), name


@given(
    size=st.integers(1, 16),
    tokens=st.none() | st.integers(20, 400),
    share=st.booleans(),
    multiple=st.integers(1, 3),
    ranks=st.integers(1, 4),
    seed=st.integers(0, 100),
)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_loss_does_not_depend_on_the_cut(
    size: int, tokens: int | None, share: bool, multiple: int, ranks: int, seed: int, trainer: MegatronTrainer
) -> None:
    samples = mixed(seed)
    whole = computed(trainer, samples, Bounds(samples=1000, share=False), 1)
    assert_same(computed(trainer, samples, Bounds(size, tokens, share, multiple, hidden=128), ranks), whole)


def test_samples_with_and_without_images_are_the_sum_of_each_alone(trainer: MegatronTrainer) -> None:
    samples = mixed(0, size=1)
    whole = computed(trainer, samples, Bounds(samples=1000), 1)
    assert_same(computed(trainer, samples, Bounds(samples=1), len(samples)), whole)


class Afar(UserDict[str, Any]):
    """Media as they travel; what was read of them."""

    def __init__(self, media: Any, read: list[str]) -> None:
        super().__init__(media)
        self.read = read

    def digest(self, name: str) -> bytes:
        return digest(self.data[name])

    def __getitem__(self, name: str) -> Any:
        self.read.append(name)
        return self.data[name]


def test_only_the_first_stage_reads_pixels_and_only_of_its_own_samples(trainer: MegatronTrainer) -> None:
    batcher = replace(trainer._ready().batcher, bounds=Bounds(samples=64))
    samples = mixed(0)
    advantages_N = torch.zeros(len(samples))
    read: list[str] = []
    afar = [replace(sample, media=Afar(sample.media, read) if sample.media else {}) for sample in samples]
    first, plain = (batcher.cut(some, advantages_N, 0, 1)[0].inputs for some in (afar, samples))
    assert read.count("pixel_values") == 3, "one read for each prompt with images"
    assert torch.equal(
        first["media"]["vision"]["inputs"]["pixel_values"], plain["media"]["vision"]["inputs"]["pixel_values"]
    )
    read.clear()
    later = replace(batcher, media=False).cut(afar, advantages_N, 0, 1)[0].inputs
    assert "media" not in later and set(read) == {"image_grid_thw"}
    assert torch.equal(first["position_ids"], later["position_ids"])
    read.clear()
    shares = [batcher.cut(afar, advantages_N, part, 2)[0].inputs for part in range(2)]
    images = [len(share["media"]["vision"]["inputs"]["image_grid_thw"]) for share in shares]
    assert sum(images) == 4 and read.count("pixel_values") == 3


def test_memory_stays_flat_over_fifty_steps(trainer: MegatronTrainer) -> None:
    def used() -> tuple[int, int, int]:
        """Bytes of this process alone; bytes and number of the tensors in it."""
        gc.collect()
        alive = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
        return psutil.Process().memory_full_info().uss, sum(tensor.nbytes for tensor in alive), len(alive)

    for step in range(10):
        trainer.train(step, mixed(step))
    before = used()
    for step in range(10, 50):
        trainer.train(step, mixed(step))
    for now, then in zip(used(), before, strict=True):
        assert now <= 1.02 * then
