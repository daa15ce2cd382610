"""Checkpoints of a run on disk: ``checkpoints/step_<n>``, each whole or not there; the trainer's files are its own."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from slime_launch import manifest
from slime_launch.errors import ComponentError
from slime_launch.fail_points import FailPoint, pass_by

FOLDER = "checkpoints"
STATE = "state.json"
STATE_VERSION = 1
_STEP = re.compile(r"step_(\d+)")
_LEFTOVER = re.compile(r"\.step_\d+\.(new|old)")


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What a run goes on with beside the trainer's own state.

    step: the last one that is in the weights. seed: the run's. data: the rollout's ``state_dict``.
    eval_before, eval_after: scores so far, fractions. span: updates that the learning rate's schedule spans, 0 where it
    is constant.
    """

    version: int = STATE_VERSION
    step: int
    seed: int
    data: dict[str, Any] = field(default_factory=dict)
    eval_before: float | None = None
    eval_after: float | None = None
    span: int = 0


@dataclass(frozen=True)
class Saved:
    """One whole checkpoint."""

    folder: Path
    state: RunState

    @property
    def run_dir(self) -> Path:
        """The folder of the run that made it."""
        return self.folder.parent.parent


class Checkpoints:
    """Writes the checkpoints of one run; ``keep_last`` of them stay."""

    def __init__(self, run_dir: Path, keep_last: int) -> None:
        self._home = run_dir / FOLDER
        self._keep_last = keep_last

    def begin(self, step: int) -> Path:
        """An empty folder to fill, under a name that is no checkpoint's; what an ended process left is removed."""
        self._home.mkdir(parents=True, exist_ok=True)
        for path in self._home.iterdir():
            if _LEFTOVER.fullmatch(path.name):
                shutil.rmtree(path)
        folder = self._hidden(step, "new")
        folder.mkdir(mode=0o700)
        return folder

    def commit(self, state: RunState, entries: Mapping[str, manifest.Entry]) -> Path:
        """Make the filled folder of ``state.step`` a checkpoint, then remove those that are not kept.

        Raises ComponentError when it cannot be written.
        """
        fresh, target = self._hidden(state.step, "new"), self._home / f"step_{state.step}"
        pass_by(FailPoint.SAVE_INDEXED)
        try:
            (fresh / STATE).write_bytes(msgspec.json.encode(state))
            manifest.write(fresh, {**entries, **manifest.measure(fresh, [STATE])})
            pass_by(FailPoint.SAVE_LISTED)
            if target.exists():
                target.rename(self._hidden(state.step, "old"))
            fresh.rename(target)
            manifest.to_disk(self._home)
        except OSError as error:
            raise ComponentError(f"checkpoint {target} cannot be written: {error}") from error
        pass_by(FailPoint.SAVE_NAMED)
        self._prune(state.step)
        return target

    def _prune(self, step: int) -> None:
        """Keep the last ones up to ``step``; those beyond it belong to a history that was given up."""
        folders = by_step(self._home.parent)
        kept = sorted(number for number in folders if number <= step)[-self._keep_last :]
        for number in sorted(folders.keys() - set(kept)):
            old = self._hidden(number, "old")
            folders[number].rename(old)
            (old / manifest.NAME).unlink(missing_ok=True)
            pass_by(FailPoint.PRUNE_HALF)
            shutil.rmtree(old)
        shutil.rmtree(self._hidden(step, "old"), ignore_errors=True)

    def _hidden(self, step: int, kind: str) -> Path:
        return self._home / f".step_{step}.{kind}"


def by_step(run_dir: Path) -> dict[int, Path]:
    """A run's checkpoint folders by step, whole or not."""
    home = run_dir / FOLDER
    names = os.listdir(home) if home.is_dir() else []
    return {int(found[1]): home / name for name in names if (found := _STEP.fullmatch(name))}


def open_checkpoint(folder: Path) -> Saved:
    """A checkpoint whose files are all there and only ours; the content of the trainer's files is not read.

    Raises manifest.TornError and manifest.ForeignError.
    """
    entries = manifest.read(folder)
    if STATE not in entries or manifest.altered(folder, {STATE: entries[STATE]}):
        raise manifest.TornError(f"{folder / STATE} is not the file that {manifest.NAME} lists")
    try:
        state = msgspec.json.decode((folder / STATE).read_bytes(), type=RunState)
    except (OSError, msgspec.DecodeError) as error:
        raise manifest.TornError(f"{folder / STATE} cannot be read ({error})") from None
    if state.version != STATE_VERSION:
        raise manifest.TornError(f"{folder / STATE} is of version {state.version}, this one reads {STATE_VERSION}")
    return Saved(folder, state)


def newest(run_dir: Path) -> tuple[Saved | None, list[str]]:
    """(A run's last whole checkpoint, why later ones were passed over).

    Raises manifest.ForeignError when one that would have been taken is not only ours.
    """
    passed_over: list[str] = []
    for _, folder in sorted(by_step(run_dir).items(), reverse=True):
        try:
            return open_checkpoint(folder), passed_over
        except manifest.TornError as error:
            passed_over.append(str(error))
    return None, passed_over
