"""The driver's loop with a real trainer and recorded samples: saved beside training, gone on exactly."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from components.data.order import Shuffled
from components.megatron.trainer import MegatronTrainer
from components.rollout.buffer import Buffer
from slime_launch.checkpoints import by_step, newest
from slime_launch.driver import Loop, Outcome, train
from slime_launch.errors import ComponentError
from slime_launch.progress import Progress
from slime_launch.records import Records
from slime_launch.resume import Start, carry_rows, choose
from slime_launch.schema import Config, DriverConfig, TrainerConfig
from slime_launch.schema.trainer import CheckpointConfig, OptimConfig
from slime_launch.types import Sample
from tests.components.megatron.helpers import random_samples, trainer_settings, write_random

SEED = 5


class Recorded:
    """A rollout whose samples follow from the data position alone."""

    def __init__(self) -> None:
        self.data = Shuffled(range(7), SEED)

    def generate(self, step: int) -> tuple[list[Sample], dict[str, float]]:
        first, second = self.data.take(2)
        samples = random_samples("qwen3", groups=2, seed=7 * first + second)
        for sample in samples:
            sample.weight_versions = [step - 1] * len(sample.response_ids)
        return samples, {"rollout/prompts": 10.0 * first + second}

    def evaluate(self, step: int) -> dict[str, float]:
        return {"eval/set": step / 100, "eval/set/greedy": step / 50}

    def state_dict(self) -> dict[str, Any]:
        return self.data.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.data.load_state_dict(state)


class Here:
    """A fleet whose components live in this process."""

    def __init__(self, **components: Any) -> None:
        self.components = components
        self.plan = SimpleNamespace(of_kind=lambda kind: [SimpleNamespace(name=kind)] if kind in components else [])
        self.calls: list[str] = []

    def call(self, names: list[str], method: str, *args: Any, what: str, timeout_s: float) -> list[Any]:
        self.calls.append(method)
        return [getattr(self.components[name], method)(*args) for name in names]


Drive = Callable[..., Loop]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random(tmp_path_factory.mktemp("saving") / "qwen3", "qwen3")


@pytest.fixture
def drive(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Drive]:
    """Runs the loop to its end in a folder."""
    monkeypatch.setattr("ray.put", lambda value: value)
    running: list[MegatronTrainer] = []

    def run(
        run_dir: Path,
        num_steps: int,
        resume: str | None = None,
        rollout: Any = None,
        optim: OptimConfig | None = None,
        **checkpoint: Any,
    ) -> Loop:
        run_dir.mkdir(exist_ok=True)
        config = Config(
            seed=SEED,
            driver=DriverConfig(eval_interval=2),
            trainer=TrainerConfig(
                num_steps=num_steps, checkpoint=CheckpointConfig(**checkpoint), optim=optim or OptimConfig()
            ),
        )
        start = choose(resume, run_dir, SEED) if resume else Start()
        carry_rows(start, run_dir)
        trainer = MegatronTrainer(**trainer_settings(model, "qwen3"))
        running.append(trainer)
        trainer.start({})
        fleet, records = Here(trainer=trainer, rollout=rollout or Recorded()), Records(run_dir)
        loop = Loop(config, fleet, records, [], Progress(Console(width=1000)), run_dir, Outcome(), start)  # type: ignore[arg-type]
        try:
            train(loop)
        finally:
            records.close()
            trainer.stop()
        return loop

    yield run
    for trainer in running:
        trainer.stop()


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def same(one: Path, other: Path) -> bool:
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    return all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_run_in_two_parts_is_the_run_in_one(drive: Drive, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    drive(straight, 6)
    drive(parts, 4, interval=3, keep_last=5)
    assert sorted(by_step(parts)) == [3, 4]
    (
        parts / "checkpoints" / "step_4" / "state.json"
    ).unlink()  # torn: rows of step 4 are then beyond the last whole one
    capsys.readouterr()
    loop = drive(parts, 6, resume="auto", interval=3, keep_last=5)
    said = capsys.readouterr().out
    assert "passed over a torn checkpoint" in said
    assert "step 3, seed 5, data position (round 0, given 6, size 7, seed 5), optimizer after 3 updates" in said
    assert "going on with step 4 of 6" in said and "jumps" not in said
    one, two = rows(straight), rows(parts)
    assert [row["step"] for row in two] == [row["step"] for row in one] == list(range(7))
    for name in ("rollout/prompts", "train/loss", "train/grad_norm", "eval/set"):
        assert [row.get(name) for row in one] == [row.get(name) for row in two]
    assert same(parts / "hf", straight / "hf")
    assert (loop.outcome.steps, loop.outcome.eval_before, loop.outcome.eval_after) == (6, 0.0, 0.06)
    samples = [json.loads(line)["step"] for line in (parts / "samples.jsonl").read_text().splitlines()]
    assert samples == [step for step in range(1, 7) for _ in range(8)]


def test_a_schedule_that_spans_more_than_before_is_told(
    drive: Drive, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    linear = OptimConfig(schedule="linear")
    drive(tmp_path, 1, optim=linear, interval=1)
    drive(tmp_path, 2, resume="auto", optim=linear, interval=1)
    told = "its schedule spans 2 updates now, and before spans 1 updates"
    assert told in capsys.readouterr().out


def test_a_branch_has_the_rows_of_its_past(drive: Drive, tmp_path: Path) -> None:
    first, branch = tmp_path / "first", tmp_path / "branch"
    drive(first, 3, interval=1, keep_last=9)
    drive(branch, 3, resume=str(first / "checkpoints" / "step_2"), interval=1)
    assert [row["step"] for row in rows(branch)] == [0, 1, 2, 3]
    assert same(branch / "hf", first / "hf")
    assert sorted(by_step(branch)) == [3] and sorted(by_step(first)) == [1, 2, 3]


def test_what_is_saved_and_when(drive: Drive, tmp_path: Path) -> None:
    loop = drive(tmp_path, 5, interval=2, keep_last=1, hf_interval=3)
    assert sorted(by_step(tmp_path)) == [5] and newest(tmp_path)[0] is not None
    assert sorted(path.name for path in tmp_path.glob("hf*")) == ["hf", "hf_3"]
    assert [row["step"] for row in rows(tmp_path) if "perf/checkpoint_time" in row] == [2, 3, 4, 5]
    calls: list[str] = [name for name in loop.fleet.calls if "save" in name]  # type: ignore[attr-defined]
    assert calls[:3] == ["save", "finish_save", "save_hf"]  # of step 2; looked after at step 3


def test_without_an_interval_nothing_is_saved(drive: Drive, tmp_path: Path) -> None:
    loop = drive(tmp_path, 2)
    assert not (tmp_path / "checkpoints").exists()
    assert not {"save", "finish_save", "state_dict"} & set(loop.fleet.calls)  # type: ignore[attr-defined]


def test_weights_alone(drive: Drive, tmp_path: Path) -> None:
    drive(tmp_path / "first", 2, interval=2)
    loop = drive(tmp_path / "second", 0, weights_from=str(tmp_path / "first"))
    assert same(tmp_path / "second" / "hf", tmp_path / "first" / "hf")
    assert [row["step"] for row in rows(tmp_path / "second")] == [0] and loop.outcome.steps == 0


class Endless:
    """A data source of a user's own that cannot tell where it stands."""

    def take(self, num_prompts: int) -> list[Any]:
        return []

    def eval_sets(self) -> dict[str, list[Any]]:
        return {}


class Positionless(Recorded):
    """Asks the real buffer, which holds such a source."""

    def state_dict(self) -> dict[str, Any]:
        return Buffer(Endless(), lambda prompt: pytest.fail("nothing to render")).state_dict()  # type: ignore[arg-type]


def test_a_source_without_a_position_is_found_before_training(drive: Drive, tmp_path: Path) -> None:
    with pytest.raises(ComponentError, match=r"Endless has no state_dict.*trainer\.checkpoint\.interval=0"):
        drive(tmp_path, 2, rollout=Positionless(), interval=2)
    assert not rows(tmp_path)
