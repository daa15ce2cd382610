"""Sweeps without servers: which folder a job has, what is skipped, what is told at the end."""

import csv
import json
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from slime_launch.checkpoints import Checkpoints, RunState
from slime_launch.cli import command
from slime_launch.manifest import measure
from slime_launch.sweep.identity import IGNORED, job_hash
from slime_launch.sweep.ledger import JobRecord, completed, differing, rows, set_aside
from slime_launch.sweep.task import prepare
from tests.slime_launch.commands import slime_launch

QWEN = "+experiment=qwen3_grpo"
SWEEP = ["-m", QWEN, "sweep.name=s"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def folders(home: Path) -> list[str]:
    return sorted(file.parent.name for file in home.glob("multirun/s/*/job.json") if file.parent.name != "latest")


def finish(folder: Path, **summary: object) -> None:
    (folder / "summary.json").write_text(json.dumps({"status": "completed", "steps": 2, "wall_s": 1.0, **summary}))


def read_csv(home: Path) -> list[dict[str, str]]:
    with (home / "multirun" / "s" / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# which job is which


def test_the_folder_is_the_sweeps_own_overrides_and_a_hash(here: Path) -> None:
    assert command([*SWEEP, "seed=1,2", "algorithm=grpo", "mode=plan", "plan.format=json"]) == 0
    assert [name.rpartition("-")[0] for name in folders(here)] == ["seed=1", "seed=2"]
    assert all(len(name.rpartition("-")[2]) == 10 for name in folders(here))


def test_a_job_keeps_its_folder_however_it_is_asked_for(here: Path) -> None:
    assert command([*SWEEP, "seed=1,2", "mode=plan"]) == 0
    before = folders(here)
    args = ["seed=2,3", "trainer.optim.lr=0.0003", "trainer.num_steps=7", "cluster.base_port=23456", "name=other"]
    base = ["trainer.optim.lr=0.0003", "trainer.num_steps=7"]
    assert command([*SWEEP, *args, "mode=plan"]) == 0
    assert len(folders(here)) == 4
    assert command([*SWEEP, *base, "seed=3,2,1", "resume=null", "mode=plan"]) == 0
    assert len(folders(here)) == 5
    assert set(before) < set(folders(here))


def test_without_a_name_the_folder_is_date_and_name(here: Path) -> None:
    assert command(["-m", QWEN, "seed=1", "name=foo", "mode=plan"]) == 0
    [folder] = (here / "multirun").iterdir()
    assert folder.name.endswith("_foo")


def config(**more: object) -> object:
    tree = {key: "x" for key in IGNORED if "." not in key}
    below = {"cluster": {"base_port": 1, "start_timeout_s": 2}, "trainer": {"timeout_s": 3, "optim": {"lr": 1}}}
    return OmegaConf.create({**tree, **below, "hydra": {"a": 1}, **more})


@given(st.dictionaries(st.sampled_from([key for key in IGNORED if "." not in key]), st.integers()))
def test_what_does_not_matter_does_not_count(changes: dict[str, int]) -> None:
    assert job_hash(config(**changes)) == job_hash(config())


def test_what_matters_counts() -> None:
    other = config(cluster={"base_port": 5, "start_timeout_s": 6}, hydra={"a": 2})
    assert job_hash(other) == job_hash(config())
    assert job_hash(config(trainer={"timeout_s": 3, "optim": {"lr": 2}})) != job_hash(config())


def test_the_moment_and_the_folder_count_as_written() -> None:
    text = "${now:%f} ${hydra:runtime.output_dir}"
    first = job_hash(config(data={"a": text, "b": "${data.a}"}))
    time.sleep(0.001)
    assert job_hash(config(data={"a": text, "b": "${data.a}"})) == first
    assert job_hash(config(data={"a": "${now:%H}", "b": "${data.a}"})) != first


# what is done again, and what is not


def test_finished_jobs_are_skipped_and_ranked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command([*SWEEP, "seed=1,2,3", "trainer.num_steps=4", "mode=plan"]) == 0
    scores = dict(zip(folders(here), (0.25, 0.75, 0.5), strict=True))
    for name, score in scores.items():
        finish(here / "multirun" / "s" / name, eval_before=0.1, eval_after=score)
    capsys.readouterr()
    assert command([*SWEEP, "seed=1,2,3", "trainer.num_steps=4"]) == 0
    out = capsys.readouterr().out
    assert out.count("done already, skipped") == 3
    assert "sweep of 3 jobs" in out
    found = read_csv(here)
    assert [(row["seed"], row["status"], row["eval_after"]) for row in found] == [
        ("2", "completed", "0.75"), ("3", "completed", "0.5"), ("1", "completed", "0.25"),
    ]  # fmt: skip
    assert [row["job"] for row in found] == sorted(scores, key=lambda name: -scores[name])
    assert "trainer.num_steps" not in found[0]


def test_optuna_asks_for_the_same_jobs_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [*SWEEP, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "trainer.optim.lr=tag(log,interval(1e-5,1e-3))"]
    assert command([*args, "mode=plan"]) == 0
    asked = folders(here)
    assert len(asked) == 3
    for name, score in zip(asked, (0.25, 0.75, 0.5), strict=True):
        finish(here / "multirun" / "s" / name, eval_before=0.1, eval_after=score)
    capsys.readouterr()
    assert command(args) == 0
    assert capsys.readouterr().out.count("done already, skipped") == 3
    assert folders(here) == asked
    best = OmegaConf.load(here / "multirun" / "s" / "optimization_results.yaml")
    assert best.best_value == 0.75
    assert asked[1].startswith(f"trainer.optim.lr={best.best_params['++trainer.optim.lr']}-")


def test_the_space_may_stand_in_yaml(here: Path) -> None:
    (here / "conf" / "experiment").mkdir(parents=True)
    (here / "conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [qwen3_grpo, override /hydra/sweeper: optuna]\n"
        "hydra: {sweeper: {n_trials: 2, params: {trainer.optim.lr: 'tag(log, interval(1e-5, 1e-3))', seed: '4,5'}}}\n"
    )
    args = ["-m", "--config-dir", "conf", "+experiment=mine", "sweep.name=s", "mode=plan"]
    assert command(args) == 0
    assert len(folders(here)) == 2
    assert all(name.startswith("seed=") and "trainer.optim.lr=" in name for name in folders(here))
    assert command([*args, "seed=6"]) == 0  # the command line wins
    assert len(folders(here)) == 4


def failing(home: Path, body: str) -> list[str]:
    """Overrides that have every job run ``body`` where its trackers are made, which is before anything is started."""
    (home / "own_tracker.py").write_text(
        "import os, signal\nclass Tracker:\n"
        f"    def __init__(self, run_dir):\n        {body}\n"
        "    def log(self, step, metrics): ...\n    def close(self): ...\n"
    )
    return ["+tracking.trackers.own._target_=own_tracker.Tracker", "allow_targets=[own_tracker]"]


def test_a_failed_job_does_not_stop_the_sweep(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(here)
    tracker = failing(here, "raise ValueError(os.path.basename(run_dir))")
    assert command([*SWEEP, "seed=1,2", *tracker]) == 1
    found = read_csv(here)
    assert [(row["seed"], row["status"], row["steps"]) for row in found] == [("1", "failed", "0"), ("2", "failed", "0")]
    assert all(f"ValueError: {row['job']}" in row["reason"] for row in found)
    out = capsys.readouterr().out
    assert all(f"{row['job']}: ValueError" in out for row in found)
    assert command([*SWEEP, "seed=2,3", *tracker]) == 1
    assert "starts again from scratch" in capsys.readouterr().out
    assert [row["seed"] for row in read_csv(here)] == ["1", "2", "3"]
    assert (here / "multirun" / "s" / read_csv(here)[1]["job"] / "earlier" / "1" / "summary.json").exists()


def test_a_signal_stops_the_sweep_and_not_only_its_job(here: Path) -> None:
    tracker = failing(here, "os.kill(os.getpid(), signal.SIGTERM)")
    env = {"PYTHONPATH": str(here), "PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""}
    ran = slime_launch(*SWEEP, "seed=1,2", *tracker, cwd=here, env=env)
    assert ran.code == 128 + signal.SIGTERM, ran.err
    assert [row["status"] for row in read_csv(here)] == ["stopped"]
    assert len(folders(here)) == 1


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_launchers_with_processes_of_their_own(launcher: str, here: Path) -> None:
    tracker = failing(here, "raise ValueError('x' + os.path.basename(run_dir))")
    env = {"PYTHONPATH": str(here), "PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": "", "HOME": str(here)}
    ran = slime_launch(*SWEEP, "seed=1,2", f"hydra/launcher={launcher}", *tracker, cwd=here, env=env, timeout=120)
    assert ran.code == 1, ran.err
    assert [(row["seed"], row["status"]) for row in read_csv(here)] == [("1", "failed"), ("2", "failed")]
    assert all(f"ValueError: x{row['job']}" in row["reason"] for row in read_csv(here))


# one folder at a time


def record(job: str = "aaa", *overrides: str) -> JobRecord:
    return JobRecord(hash=job, overrides=overrides, invocation="i", code=0)


def test_an_attempt_is_put_aside_whole(tmp_path: Path) -> None:
    record().write(tmp_path)
    for number in ("1", "2"):
        (tmp_path / "metrics.jsonl").write_text(number)
        (tmp_path / "logs").mkdir()
        assert set_aside(tmp_path) == tmp_path / "earlier" / number
        assert (tmp_path / "earlier" / number / "metrics.jsonl").read_text() == number
        assert sorted(path.name for path in tmp_path.iterdir()) == ["earlier", "job.json"]
    assert set_aside(tmp_path) is None


def test_another_jobs_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    assert not prepare(tmp_path, "aaa", 5)
    record("bbb").write(tmp_path)
    assert not prepare(tmp_path, "aaa", 5)
    assert (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(("num_steps", "goes_on"), [(5, True), (3, False)])
def test_a_job_goes_on_from_its_checkpoint(num_steps: int, goes_on: bool, tmp_path: Path) -> None:
    record().write(tmp_path)
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    folder = checkpoints.begin(3)
    (folder / "weights").write_bytes(b"x")
    checkpoints.commit(RunState(step=3, seed=1), measure(folder, ["weights"]))
    assert prepare(tmp_path, "aaa", num_steps) is goes_on
    assert (tmp_path / "checkpoints" / "step_3").exists() is goes_on


def test_only_the_same_job_that_completed_counts_as_done(tmp_path: Path) -> None:
    assert completed(tmp_path, "aaa") is None
    record().write(tmp_path)
    assert completed(tmp_path, "aaa") is None
    finish(tmp_path, status="stopped")
    assert completed(tmp_path, "aaa") is None
    finish(tmp_path, eval_after=0.5)
    assert completed(tmp_path, "bbb") is None
    summary = completed(tmp_path, "aaa")
    assert summary is not None
    assert summary.eval_after == 0.5
    (tmp_path / "summary.json").write_text("{")
    assert completed(tmp_path, "aaa") is None


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1, max_size=6))
def test_ranking(scores: list[float | None]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as home:
        for number, score in enumerate(scores):
            folder = Path(home, str(number))
            folder.mkdir()
            record("aaa", f"++seed={number}", "+a=b").write(folder)
            finish(folder, eval_after=score)
        Path(home, "latest").symlink_to("0")
        found = rows(Path(home))
    assert [row.score for row in found] == sorted((s for s in scores if s is not None), reverse=True) + [
        None for s in scores if s is None
    ]
    assert len(found) == len(scores)
    assert differing(found) == (["seed"] if len(scores) > 1 else [])
