"""Two pipeline stages as Ray actors under the launcher's fleet: what travels to them, what a failure of one does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from components.megatron.trainer import MegatronTrainer
from slime_launch.driver import Loop, Outcome
from slime_launch.errors import ComponentError
from slime_launch.plan import LaunchPlan
from slime_launch.schema import Config
from slime_launch.types import Metrics, Sample
from tests.components.megatron.helpers import random_samples, trainer_settings, write_random
from tests.slime_launch.clusters import logical_nodes, quiet, running
from tests.slime_launch.plans import plan_for

SPOILT = 7


class Watched(MegatronTrainer):
    """Counts what it fetches; on step ``SPOILT`` the last rank's samples do not fit."""

    fetched = 0

    def train(self, step: int, samples: list[Sample]) -> Metrics:
        import ray

        if step == SPOILT and self.rank == self.world_size - 1:
            samples[0].logprobs = samples[0].logprobs[:-1]
        with mock.patch("ray.get", wraps=ray.get) as get:
            try:
                return super().train(step, samples)
            finally:
                self.fetched += get.call_count

    def count(self) -> int:
        return self.fetched


def trainers_alone(settings: dict[str, Any]) -> LaunchPlan:
    """A plan of nothing but two ranks."""
    plan = plan_for("+experiment=glm_omni_grpo", "trainer.parallel.pp=2", "rollout.topology.colocated=true")
    ranks = [
        replace(actor, component=f"{__name__}.Watched", needs=(), args=settings | {"rank": rank})
        for rank, actor in enumerate(plan.of_kind("trainer"))
    ]
    return replace(plan, actors=tuple(ranks), edges=())


@pytest.mark.full
def test_pixels_go_to_the_first_stage_alone_and_a_failed_rank_ends_the_step(tmp_path: Path) -> None:
    folder = write_random(tmp_path / "model", "glm_omni", num_hidden_layers=2)
    alone = MegatronTrainer(**trainer_settings(folder, "glm_omni"))
    alone.start({})
    expected = alone.train(0, random_samples("glm_omni"))
    alone.stop()
    plan = trainers_alone(trainer_settings(folder, "glm_omni", pp=2, world_size=2, timeout_s=900.0))
    names = [actor.name for actor in plan.actors]
    with logical_nodes([0], tmp_path), running(plan, tmp_path) as (_, fleet):
        loop = Loop(Config(), fleet, mock.Mock(), [], quiet(), tmp_path, Outcome())
        metrics = loop.train(0, random_samples("glm_omni"))
        assert metrics["train/loss"] == pytest.approx(expected["train/loss"], abs=1e-6)
        assert metrics["train/grad_norm"] == pytest.approx(expected["train/grad_norm"], rel=1e-4)
        first, later = fleet.call(names, "count", what="counting", timeout_s=30.0)
        assert first >= 2 and later == 0, "each prompt has an image"
        with pytest.raises(
            ComponentError, match=r"^trainer-1: sample 0 of group 0: lengths differ.*; no answer yet from trainer-0$"
        ):
            loop.train(SPOILT, random_samples("glm_omni"))
