"""The jobs of a sweep folder as their own folders tell: job.json of the sweep, summary.json of the run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from slime_launch.records import write_json

_Read = TypeVar("_Read")
JOB, SUMMARY, EARLIER = "job.json", "summary.json", "earlier"


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """What a sweep notes in a job's folder.

    hash: of the config. overrides: ``key=value`` as Hydra gave them. invocation: of the command that asked for the
    job last. code: the exit code, None while it runs or when it ended without a word.
    """

    hash: str
    overrides: tuple[str, ...]
    invocation: str
    code: int | None = None

    def write(self, folder: Path) -> None:
        """Write job.json."""
        write_json(folder / JOB, self)


def read_record(folder: Path) -> JobRecord | None:
    """job.json of a folder; None when there is none that can be read."""
    return _read(folder / JOB, JobRecord)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a sweep reads of summary.json; scores are fractions."""

    status: str
    steps: int = 0
    wall_s: float = 0.0
    eval_before: float | None = None
    eval_after: float | None = None
    reason: str | None = None


def read_summary(folder: Path) -> Summary | None:
    """summary.json of a folder; None when there is none that can be read."""
    return _read(folder / SUMMARY, Summary)


def _read(file: Path, kind: type[_Read]) -> _Read | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError):
        return None


def refuse(folder: Path, reason: str) -> None:
    """summary.json of a job that could not start."""
    write_json(folder / SUMMARY, {"status": "refused", "reason": reason, "steps": 0, "wall_s": 0.0})


def completed(folder: Path, job: str) -> Summary | None:
    """The summary of a finished job with this hash."""
    record, summary = read_record(folder), read_summary(folder)
    done = record is not None and record.hash == job and summary is not None and summary.status == "completed"
    return summary if done else None


def set_aside(folder: Path) -> Path | None:
    """Move what an unfinished attempt of a job left into ``earlier/<n>``; returns where to, None when nothing was."""
    left = [path for path in folder.iterdir() if path.name not in (JOB, EARLIER)]
    if not left:
        return None
    home = folder / EARLIER
    home.mkdir(exist_ok=True)
    target = home / str(1 + len(list(home.iterdir())))
    target.mkdir()
    for path in left:
        os.rename(path, target / path.name)
    return target


@dataclass(frozen=True)
class Row:
    """One job of a sweep."""

    folder: Path
    record: JobRecord
    summary: Summary | None

    @property
    def overrides(self) -> dict[str, str]:
        """Value by key."""
        pairs = (line.lstrip("+").partition("=") for line in self.record.overrides)
        return {key: value for key, _, value in pairs}

    @property
    def status(self) -> str:
        """The run's; else what is known: handed to a scheduler, or ended without a word."""
        if self.summary is not None:
            return self.summary.status
        return "submitted" if self.record.code == 0 else "lost"

    @property
    def score(self) -> float | None:
        """What jobs are ranked by, of those that completed."""
        return self.summary.eval_after if self.summary is not None and self.status == "completed" else None


def rows(sweep_dir: Path) -> list[Row]:
    """Every job below a sweep's folder, best first; jobs without a score last, by folder."""
    found = [Row(file.parent, *both) for file in _job_files(sweep_dir) if (both := _both(file.parent))]
    return sorted(found, key=lambda row: (row.score is None, -(row.score or 0.0), row.folder))


def _job_files(sweep_dir: Path) -> Iterator[Path]:
    for file in sweep_dir.rglob(JOB):
        if not any(parent.is_symlink() for parent in file.parents):  # the latest link
            yield file


def _both(folder: Path) -> tuple[JobRecord, Summary | None] | None:
    record = read_record(folder)
    return None if record is None else (record, read_summary(folder))


def differing(found: list[Row]) -> list[str]:
    """Keys of the overrides that are not the same in every row, in the order that they were given."""
    keys = list(dict.fromkeys(key for row in found for key in row.overrides))
    return [key for key in keys if len({row.overrides.get(key) for row in found}) > 1]
