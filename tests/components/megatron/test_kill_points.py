"""kill -9 at every named place of a save: the last whole checkpoint loads, and the run ends as if nothing had been."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from slime_launch.checkpoints import newest
from slime_launch.fail_points import ENV, FailPoint
from tests.components.megatron.actions import KEPT, run, start
from tests.components.megatron.helpers import trainer_settings, write_random

STEPS = range(1, KEPT + 2)
"""Each is saved; with the last one, the first is removed."""
LAST = STEPS[-1]
FILES_A_SAVE = 2
HITS = {
    # (how often the place is passed before the last save's, the step of the checkpoint that must be left)
    FailPoint.SAVE_BEGUN: (KEPT, LAST - 1),
    FailPoint.SAVE_HALF: (KEPT * FILES_A_SAVE, LAST - 1),
    FailPoint.SAVE_WRITTEN: (KEPT, LAST - 1),
    FailPoint.SAVE_INDEXED: (KEPT, LAST - 1),
    FailPoint.SAVE_LISTED: (KEPT, LAST - 1),
    FailPoint.SAVE_NAMED: (KEPT, LAST),
    FailPoint.PRUNE_HALF: (0, LAST),
}


def script(run_dir: Path, steps: range) -> list[list[Any]]:
    actions: list[list[Any]] = []
    for step in steps:
        actions += [["train", step], ["save", str(run_dir), step], ["finish", str(run_dir), step]]
    return actions


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random(tmp_path_factory.mktemp("kills") / "qwen3", "qwen3")


@pytest.fixture(scope="module")
def killed(model: Path) -> dict[FailPoint, tuple[Path, int]]:
    """(Run folder, exit code) of a run that was killed at each place, two at a time."""

    def one(point: FailPoint) -> tuple[Path, int]:
        folder = model.parent / point
        folder.mkdir()
        job = {"settings": trainer_settings(model, "qwen3"), "script": script(folder, STEPS)}
        world: list[subprocess.Popen[bytes]] = start(folder / "job.json", job, **{ENV: f"{point}:{HITS[point][0] + 1}"})
        try:
            return folder, world[0].wait(timeout=120)
        finally:
            world[0].kill()

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(FailPoint, pool.map(one, FailPoint), strict=True))


@pytest.fixture(scope="module")
def undisturbed(model: Path) -> Iterator[dict[str, torch.Tensor]]:
    """The weights of the same steps, and one more, in one go."""
    end = model.parent / "undisturbed"
    steps = [["train", step] for step in (*STEPS, LAST + 1)]
    run({"settings": trainer_settings(model, "qwen3"), "script": [*steps, ["hf", str(end)]]}, 0)
    yield load_file(end / "model.safetensors")


@pytest.mark.parametrize("point", FailPoint)
def test_nothing_is_lost(
    point: FailPoint, killed: dict[FailPoint, tuple[Path, int]], undisturbed: dict[str, torch.Tensor], model: Path
) -> None:
    folder, code = killed[point]
    assert code == -signal.SIGKILL
    saved, torn = newest(folder)
    assert saved is not None and not torn and saved.state.step == HITS[point][1]
    rest = range(saved.state.step + 1, LAST + 2)
    actions = [["load", str(saved.folder)], *script(folder, rest), ["hf", str(folder / "end")]]
    run({"settings": trainer_settings(model, "qwen3"), "script": actions}, 0)
    resumed = load_file(folder / "end" / "model.safetensors")
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in undisturbed)
    left = {path.name for path in (folder / "checkpoints").iterdir()}
    assert left == {f"step_{step}" for step in range(LAST + 2 - KEPT, LAST + 2)}


def test_a_place_without_the_environment_is_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    from slime_launch.fail_points import pass_by

    monkeypatch.delenv(ENV, raising=False)
    for point in FailPoint:
        pass_by(point)
