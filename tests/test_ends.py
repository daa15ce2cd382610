"""However a run ends, nothing of it is left running, and its folder says how it ended."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from components.models.qwen3.tiny import write_checkpoint
from tests.runs import Run, listening

pytestmark = pytest.mark.servers
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "qwen3"
    write_checkpoint(folder, seed=0)
    return folder


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path) -> Iterator[Run]:
    """A long run that trains from random weights."""
    args = [f"model.hf_checkpoint={checkpoint}", "data.eval_size=8", "rollout.num_prompts=2", "trainer.num_steps=10000"]
    run = Run("+experiment=qwen3_grpo", *args, "driver.eval_interval=0", cwd=tmp_path)
    yield run
    run.end()


def wait_for_steps(run: Run) -> None:
    run.wait_until(lambda: len(run.metrics()) >= 2, 180)


def test_killed_while_training_listens_on_loopback_only(run: Run) -> None:
    wait_for_steps(run)
    addresses = listening(run.survivors())
    assert len(addresses) > 5
    assert {address for address, _ in addresses} <= LOOPBACK, addresses
    os.kill(run.process.pid, signal.SIGKILL)
    run.wait(5)
    assert run.gone_within(15), [psutil.Process(pid).cmdline() for pid in run.survivors()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_while_an_engine_starts(run: Run, number: signal.Signals) -> None:
    run.wait_until(lambda: (run.folder / "logs" / "engine-0.log").exists(), 120)
    run.process.send_signal(number)
    assert run.wait(15) == 128 + number, run.console()
    assert run.gone_within(1)
    assert run.summary()["status"] == "stopped"


def test_an_engine_that_dies_ends_the_run(run: Run) -> None:
    wait_for_steps(run)
    commands = {pid: " ".join(psutil.Process(pid).cmdline()) for pid in run.survivors()}
    [engine] = [
        pid for pid, command in commands.items() if "logs/engine-0.log" in command and "guard.py" not in command
    ]
    os.kill(engine, signal.SIGKILL)
    assert run.wait(30) == 1, run.console()
    assert run.gone_within(1), [psutil.Process(pid).cmdline() for pid in run.survivors()]
    assert "failed: server engine-0" in run.console()
    assert "logs/engine-0.log" in run.console()
    assert run.summary()["status"] == "failed"


def test_an_engine_that_cannot_start_ends_the_run_with_its_log(checkpoint: Path, tmp_path: Path) -> None:
    bad = "+rollout.topology.groups.engine.overrides.attention_backend=nonsense"
    run = Run("+experiment=qwen3_grpo", f"model.hf_checkpoint={checkpoint}", bad, cwd=tmp_path)
    assert run.wait(120) == 1
    assert run.gone_within(1)
    assert "nonsense" in run.console()
    assert "logs/engine-0.log" in run.console()


def test_a_gap_over_the_bound_ends_the_run_and_says_so(checkpoint: Path, tmp_path: Path) -> None:
    args = ["data.eval_size=8", "rollout.num_prompts=2", "trainer.max_logprob_gap=1e-12"]
    run = Run("+experiment=qwen3_grpo", f"model.hf_checkpoint={checkpoint}", *args, cwd=tmp_path)
    assert run.wait(180) == 1
    assert run.gone_within(1)
    assert "max_logprob_gap" in run.console()
    assert run.summary()["steps"] == 0
