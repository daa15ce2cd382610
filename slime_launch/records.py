"""The files of a run folder: metrics.jsonl, samples.jsonl, summary.json, and the ``latest`` link beside the folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import msgspec

from slime_launch.types import Metrics, Sample


class Records:
    """Appends whole lines, flushed one by one, so that a torn run leaves readable files."""

    def __init__(self, run_dir: Path) -> None:
        self._metrics: TextIO = (run_dir / "metrics.jsonl").open("a")
        self._samples: TextIO = (run_dir / "samples.jsonl").open("a")

    def metrics(self, step: int, metrics: Metrics) -> None:
        """Append one step's metrics."""
        _append(self._metrics, [{"step": step, **metrics}])

    def samples(self, step: int, samples: Iterable[Sample]) -> None:
        """Append one step's samples, one line each."""
        _append(self._samples, (_sample_line(step, sample) for sample in samples))

    def close(self) -> None:
        """Close both files."""
        self._metrics.close()
        self._samples.close()


def _sample_line(step: int, sample: Sample) -> dict[str, Any]:
    return {
        "step": step, "group": sample.group, "index": sample.index, "part": sample.part, "prompt": sample.prompt_text,
        "response": sample.response, "reward": sample.reward, "reward_parts": sample.reward_parts,
        "raw_reward": sample.raw_reward,
        "weight_version": sample.weight_version, "status": str(sample.status), "label": sample.prompt.label,
        "source": sample.prompt.source,
    }  # fmt: skip


def _append(file: TextIO, lines: Iterable[dict[str, Any]]) -> None:
    file.writelines(json.dumps(line) + "\n" for line in lines)
    file.flush()


def write_json(file: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    part = file.with_name(file.name + ".part")
    part.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    os.replace(part, file)


def point_latest(run_dir: Path) -> None:
    """Make ``latest`` beside the run folder point at it; a real file or folder of that name is left alone."""
    link = run_dir.parent / "latest"
    if link.is_symlink() or not link.exists():
        part = run_dir.parent / f".latest-{os.getpid()}"
        part.symlink_to(run_dir.name)
        os.replace(part, link)
