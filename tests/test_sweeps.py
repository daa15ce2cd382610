"""A sweep as a user starts it: one Ray head and the same engine for its jobs, and nothing is done twice."""

import csv
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from components.models.qwen3.tiny import write_checkpoint
from tests.runs import Run, read_jsonl

pytestmark = pytest.mark.servers

STEPS, PROMPTS, GROUP = 2, 2, 2
RATES = ("0.0001", "0.001")  # as Hydra writes them


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a job of seconds, from random weights."""
    folder = tmp_path_factory.mktemp("model") / "qwen3"
    write_checkpoint(folder, seed=0)
    return [
        "+experiment=qwen3_grpo", f"model.hf_checkpoint={folder}", f"trainer.num_steps={STEPS}",
        f"rollout.num_prompts={PROMPTS}", f"rollout.group_size={GROUP}", "data.eval_size=4", "driver.eval_interval=0",
    ]  # fmt: skip


@dataclass
class Watched:
    """A sweep that has ended: process ids of Ray's heads and engines that were seen while it ran."""

    run: Run
    code: int
    sweep_dir: Path
    console: str = ""
    heads: set[int] = field(default_factory=set)
    engines: set[int] = field(default_factory=set)

    def rows(self) -> list[dict[str, str]]:
        with (self.sweep_dir / "sweep.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def job(self, rate: str) -> Path:
        [folder] = self.sweep_dir.glob(f"trainer.optim.lr={rate}-*")
        return folder


def sweep(common: list[str], cwd: Path, *more: str, timeout: float = 400) -> Watched:
    run = Run("-m", *common, "sweep.name=s", f"trainer.optim.lr={','.join(RATES)}", *more, cwd=cwd)
    watched, deadline = Watched(run, 1, cwd / "multirun" / "s"), time.monotonic() + timeout
    try:
        while run.process.poll() is None:
            assert time.monotonic() < deadline, run.console()
            look(watched)
            time.sleep(0.3)
        watched.code, watched.console = run.wait(1), run.console()
        return watched
    finally:
        run.end()


def look(watched: Watched) -> None:
    """Note the Ray heads and engines that are there now: the processes right below a guard, not what they fork."""
    for pid in watched.run.survivors():
        try:
            process = psutil.Process(pid)
            command, above = " ".join(process.cmdline()), process.parent()
            guarded = above is not None and "guard.py" in " ".join(above.cmdline())
        except psutil.NoSuchProcess:
            continue
        if not guarded or "guard.py" in command:
            continue
        if "ray_head.py" in command:
            watched.heads.add(pid)
        if "logs/engine-0.log" in command:
            watched.engines.add(pid)


@pytest.fixture(scope="module")
def twice(common: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Watched, Watched]]:
    """A sweep over two learning rates, and the same command again."""
    home = tmp_path_factory.mktemp("sweep")
    first = sweep(common, home)
    assert first.code == 0, first.console
    second = sweep(common, home)
    yield first, second


def test_both_jobs_complete_and_are_in_the_table(twice: tuple[Watched, Watched]) -> None:
    rows = twice[0].rows()
    assert {row["trainer.optim.lr"] for row in rows} == set(RATES)
    assert [row["status"] for row in rows] == ["completed"] * 2
    assert [int(row["steps"]) for row in rows] == [STEPS] * 2
    scores = [float(row["eval_after"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert "sweep of 2 jobs" in twice[0].console


def test_one_head_and_one_engine_serve_both(twice: tuple[Watched, Watched]) -> None:
    first = twice[0]
    assert len(first.heads) == 1
    assert len(first.engines) == 1
    assert "kept from the job before" in first.console
    assert (first.job(RATES[1]) / "logs" / "engine-0.log").resolve() == first.job(RATES[0]) / "logs" / "engine-0.log"


def test_nothing_is_left(twice: tuple[Watched, Watched]) -> None:
    assert twice[0].run.gone_within(1)


def test_the_same_sweep_again_starts_nothing(twice: tuple[Watched, Watched]) -> None:
    first, second = twice
    assert second.code == 0
    assert second.console.count("done already, skipped") == 2
    assert "starting" not in second.console
    assert second.heads == set()
    assert second.rows() == first.rows()


def first_step(folder: Path) -> list[tuple[Any, ...]]:
    rows = [row for row in read_jsonl(folder / "samples.jsonl") if row["step"] == 1]
    return sorted((row["group"], row["index"], row["prompt"], row["response"], row["weight_version"]) for row in rows)


def test_a_kept_engine_answers_as_a_fresh_one(
    twice: tuple[Watched, Watched], common: list[str], tmp_path: Path
) -> None:
    run = Run(*common, f"trainer.optim.lr={RATES[1]}", cwd=tmp_path)
    try:
        assert run.wait(300) == 0, run.console()
    finally:
        run.end()
    alone = first_step(run.folder)
    assert len(alone) == PROMPTS * GROUP
    assert {row[-1] for row in alone} == {0}
    assert first_step(twice[0].job(RATES[1])) == alone


def test_ctrl_c_stops_the_sweep_and_the_next_one_goes_on(common: list[str], tmp_path: Path) -> None:
    args = [*common, "sweep.name=s", f"trainer.optim.lr={','.join(RATES)}", "trainer.checkpoint.interval=1"]
    long = [*args, "trainer.num_steps=200"]
    run = Run("-m", *long, cwd=tmp_path)
    home = tmp_path / "multirun" / "s"
    try:
        run.wait_until(lambda: any(home.glob("trainer*/checkpoints/step_[2-9]")), 200)
        os.kill(run.process.pid, signal.SIGINT)
        assert run.wait(60) == 128 + signal.SIGINT, run.console()
    finally:
        run.end()
    assert run.gone_within(1)
    [job] = [file.parent for file in home.glob("trainer*/job.json")]
    with (home / "sweep.csv").open(newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["stopped"]
    again = Run("-m", *long, cwd=tmp_path)
    try:
        again.wait_until(lambda: f"{job.name}: was not finished, goes on after step" in again.console(), 60)
        again.wait_until(lambda: "going on with step" in again.console(), 200)
    finally:
        again.end()


@pytest.mark.full
def test_optuna_trains_its_trials(common: list[str], tmp_path: Path) -> None:
    space = "trainer.optim.lr=tag(log,interval(1e-5,1e-3))"
    args = ["-m", *common, "sweep.name=s", space, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2"]
    run = Run(*args, cwd=tmp_path)
    try:
        assert run.wait(500) == 0, run.console()
    finally:
        run.end()
    home = tmp_path / "multirun" / "s"
    with (home / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["completed"] * 2
    assert len({row["trainer.optim.lr"] for row in rows}) == 2
    best = (home / "optimization_results.yaml").read_text()
    assert f"best_value: {rows[0]['eval_after']}" in best
