"""The same command for machines that a scheduler gives: what runs there joins the Ray cluster that it finds there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from rich.console import Console

from slime_launch.cluster.backend import Submission
from slime_launch.plan import LaunchPlan

_DROPPED = ("cluster.backend", "hydra", "mode")
_JOIN = "slime_launch.cluster.join.RayCluster"


def submission(plan: LaunchPlan, run_dir: Path, console: Console) -> Submission:
    """The command that Hydra is carrying out now."""
    hydra = HydraConfig.get()
    folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    return Submission(
        plan=plan,
        overrides=list(hydra.overrides.task),
        config_dir=Path(folders[0]) if folders else None,
        run_dir=run_dir.resolve(),
        console=console,
    )


def plain_overrides(overrides: Sequence[str]) -> list[str]:
    """A config's overrides without those about where it runs and where it writes."""
    return [line for line in overrides if not _is_dropped(line.lstrip("+~").partition("=")[0])]


def _is_dropped(key: str) -> bool:
    return key == "cluster" or any(key == name or key.startswith(name + ".") for name in _DROPPED)


def inner_command(job: Submission, run_dir: str | Path) -> list[str]:
    """``slime-launch`` with the job's overrides and cluster=ray.

    It reads address and token from RAY_ADDRESS and RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN, so it holds no secret.
    """
    return ["slime-launch", *_arguments(job, str(run_dir))]


def _arguments(job: Submission, run_dir: str) -> Iterator[str]:
    if job.config_dir is not None:
        yield from ("--config-dir", str(job.config_dir))
    yield from plain_overrides(job.overrides)
    yield "cluster=ray"
    # an experiment may have set keys of the scheduler, which this backend does not have
    yield "~cluster.backend"
    yield f"+cluster.backend={{_target_: {_JOIN}}}"
    yield f"hydra.run.dir={hydra_string(run_dir)}"


def hydra_string(text: str) -> str:
    """A quoted string of Hydra's override grammar."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'" if escaped != text or not text.replace("/", "").replace("_", "").isalnum() else text


def write_private(file: Path, text: str) -> None:
    """Write a file that only its owner reads: overrides are the user's own business."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(text)
