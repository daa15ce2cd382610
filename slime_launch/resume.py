"""``resume=auto|PATH``: the checkpoint that a run goes on from, and the rows that its files keep."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slime_launch import manifest
from slime_launch.checkpoints import FOLDER, Saved, newest, open_checkpoint
from slime_launch.errors import ConfigError, Problem

AUTO = "auto"
ROWS = ("metrics.jsonl", "samples.jsonl")


@dataclass(frozen=True)
class Start:
    """Where a run begins: after the step of ``saved``, or from scratch; ``notes`` say how that was chosen."""

    saved: Saved | None = None
    notes: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """The last step that is done already."""
        return self.saved.state.step if self.saved else 0


def choose(resume: str | None, run_dir: Path, seed: int) -> Start:
    """The start of a run in ``run_dir``.

    Raises ConfigError when ``resume`` names nothing to go on from, the run had another seed, or ``run_dir`` holds
    another run.
    """
    start = _start(resume, run_dir)
    found = []
    if start.saved and start.saved.state.seed != seed:
        old = start.saved.state.seed
        found.append(Problem("seed", seed, f"the run to go on from had seed {old}", f"give seed={old}"))
    goes_on_here = start.saved is not None and start.saved.run_dir.resolve() == run_dir.resolve()
    if (run_dir / ROWS[0]).exists() and resume != AUTO and not goes_on_here:
        mend = "give another folder, leave it to the time of day, or go on with resume=auto"
        found.append(Problem("hydra.run.dir", run_dir, "holds a run already", mend))
    if found:
        raise ConfigError(found)
    return start


def _start(resume: str | None, run_dir: Path) -> Start:
    if resume is None:
        return Start()
    if resume != AUTO:
        return Start(named("resume", resume))
    try:
        saved, passed_over = newest(run_dir)
    except manifest.ForeignError as error:
        raise ConfigError([_foreign("resume", resume, error)]) from None
    notes = [f"resume: passed over a torn checkpoint: {reason}" for reason in passed_over]
    if saved is None:
        notes.append(f"resume: there is no whole checkpoint in {run_dir / FOLDER}; starting from scratch")
    return Start(saved, tuple(notes))


def named(key: str, given: str) -> Saved:
    """The checkpoint that a folder is, or the newest whole one of a run folder.

    Raises ConfigError, which names ``key``.
    """
    folder = Path(given).expanduser().absolute()
    try:
        if (folder / FOLDER).is_dir():
            saved, torn = newest(folder)
            if saved is None:
                torn = torn or [f"{folder / FOLDER} is empty"]
                raise manifest.TornError(f"no whole checkpoint there: {'; '.join(torn)}")
            return saved
        return open_checkpoint(folder)
    except manifest.ForeignError as error:
        raise ConfigError([_foreign(key, given, error)]) from None
    except (manifest.TornError, OSError) as error:
        mend = "name a run folder, or one of its checkpoints/step_<n>"
        raise ConfigError([Problem(key, given, str(error), mend)]) from None


def _foreign(key: str, value: str, error: manifest.ForeignError) -> Problem:
    mend = "copy it as this user into a folder that only this user may write, if you trust who made it"
    return Problem(key, value, f"{error}, and a checkpoint is read by pickle, which can run code", mend)


def carry_rows(start: Start, run_dir: Path) -> None:
    """Make the files of rows in ``run_dir`` end with the step that the run goes on from.

    Rows come from the run that made the checkpoint; later ones, and a torn last one, are dropped. A run that starts
    from scratch puts rows of an earlier try aside, under a name with a number.
    """
    for name in ROWS:
        target = run_dir / name
        if start.saved is None:
            _put_aside(target)
            continue
        part = run_dir / f"{name}.part"
        with part.open("w") as file:
            file.writelines(_rows_up_to(start.saved.run_dir / name, start.step))
        os.replace(part, target)


def _rows_up_to(file: Path, step: int) -> Iterator[str]:
    if not file.exists():
        return
    with file.open() as rows:
        for row in rows:
            if row.endswith("\n") and json.loads(row)["step"] <= step:
                yield row


def _put_aside(file: Path) -> None:
    if file.exists() and file.stat().st_size:
        number = next(n for n in range(1, 10**6) if not file.with_name(f"{file.name}.{n}").exists())
        file.rename(file.with_name(f"{file.name}.{number}"))
