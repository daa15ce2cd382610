"""One rank: settings that are refused, the schedule, calls out of order."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.megatron.trainer import MegatronTrainer
from slime_launch.errors import ComponentError
from tests.components.megatron.helpers import (
    OPTIM,
    random_samples,
    trainer_settings,
)

Start = Callable[..., MegatronTrainer]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"freeze": ["no_such_thing"]}, "no_such_thing"),
        ({"freeze": ["."]}, "nothing is left to train"),
        ({"transformer": {"no_such_field": 1}}, "no_such_field"),
        ({"sp": True}, "sequence parallelism without tensor parallelism"),
        ({"precision": "bfloat16"}, "weights train in float32"),
        ({"transformer": {"bf16": True}}, "set trainer.precision"),
        ({"family": "glm_omni"}, "architectures"),
        ({"optim": OPTIM | {"schedule": "step"}}, "schedule"),
        ({"optim": {"lr": 1.0}}, "missing"),
        ({"optim": OPTIM | {"distributed": True}}, "fused Adam"),
        ({"world_size": 3, "tp": 2}, "no multiple"),
        ({"rendezvous": "127.0.0.1:1"}, "tcp://"),
        ({"hf_checkpoint": "/nowhere"}, "config.json"),
    ],
)
def test_wrong_settings_say_what_is_wrong(
    overrides: dict[str, Any], message: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIME_LAUNCH_ALLOW_TARGETS", "tests")
    with pytest.raises(ComponentError, match=message):
        start("qwen3", **overrides)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"schedule": "constant"}, [0.5, 1.0, 1.0, 1.0]),
        ({"schedule": "linear", "min_lr": 0.2}, [0.5, 1.0, 11 / 15, 7 / 15]),
        ({"schedule": "cosine"}, [0.5, 1.0, 0.75, 0.25]),
    ],
)
def test_learning_rates(schedule: dict[str, Any], expected: list[float], start: Start) -> None:
    scaled = {name: value * 1e-4 if name == "min_lr" else value for name, value in schedule.items()}
    trainer = start("qwen3", num_steps=4, optim=OPTIM | {"lr": 1e-4, "warmup_steps": 2} | scaled)
    rates = [trainer.train(step, random_samples("qwen3"))["train/lr-pg_0"] for step in range(4)]
    assert rates == pytest.approx([1e-4 * share for share in expected])


def test_calls_before_start_are_refused() -> None:
    trainer = MegatronTrainer(**trainer_settings(Path("/nowhere"), "qwen3"))
    with pytest.raises(ComponentError, match="start"):
        trainer.train(0, random_samples("qwen3"))
    trainer.stop()


def test_a_stopped_trainer_leaves_no_descriptor_open(start: Start) -> None:
    """And at once, not when Python's collector of cycles comes by."""

    def train_and_stop(name: str) -> int:
        trainer = start(name)
        trainer.train(0, random_samples(name))
        trainer.stop()
        return len(os.listdir("/proc/self/fd"))

    train_and_stop("qwen3")  # libraries open some once
    gc.collect()
    gc.disable()
    try:
        assert len({train_and_stop(name) for name in ("qwen3", "glm_omni", "qwen3")}) == 1
    finally:
        gc.enable()
