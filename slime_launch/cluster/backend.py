"""What ``cluster.backend`` names: a Backend gives this process a Ray cluster, a Scheduler takes the command elsewhere.

Both are dataclasses whose fields are the keys beside ``_target_``; their modules import no ray when they are imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from rich.console import Console

from slime_launch.cluster.needs import node_needs
from slime_launch.plan import LaunchPlan


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a run, or the runs of a sweep together, ask of their Ray cluster.

    port: of Ray's head, if it is ours. num_cpus, num_gpus: in all. store_mb: Ray's object store, MB.
    allow_targets: packages that ``_target_`` may name. log: where the output of processes that we start goes.
    """

    port: int
    num_cpus: int
    num_gpus: int
    store_mb: int
    allow_targets: Sequence[str]
    log: Path


def request(plans: Sequence[LaunchPlan], *, store_mb: int, allow_targets: Sequence[str], log: Path) -> Request:
    """What is enough for each of ``plans``, one after the other."""
    needs = [node_needs(plan) for plan in plans]
    return Request(
        port=plans[0].cluster.ray_port,
        num_cpus=max(sum(need.cpus for need in nodes) for nodes in needs),
        num_gpus=max(sum(need.gpus for need in nodes) for nodes in needs),
        store_mb=store_mb,
        allow_targets=allow_targets,
        log=log,
    )


class Connection(Protocol):
    """A Ray cluster that this process is connected to."""

    def processes(self) -> list[int]:
        """Processes on this machine that are ours because of it; none for a cluster that we only joined."""


@runtime_checkable
class Backend(Protocol):
    """Gives this process a Ray cluster."""

    def connect(self, request: Request) -> AbstractContextManager[Connection]:
        """Ray is initialised while the block runs; afterwards whatever was started for it is gone.

        Raises ComponentError or DeadlineError when there is no such cluster.
        """


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A command for machines that are not there yet.

    overrides: the config's, without those of the cluster group and of Hydra's own. config_dir: of ``--config-dir``.
    run_dir: where the run writes, and where the files for the scheduler go.
    """

    plan: LaunchPlan
    overrides: Sequence[str]
    config_dir: Path | None
    run_dir: Path
    console: Console


@runtime_checkable
class Scheduler(Protocol):
    """Hands a command to a scheduler instead of executing the plan here."""

    def submit_job(self, job: Submission) -> int:
        """Write, show and maybe submit; returns the exit code.

        Raises ConfigError when what it needs is not there.
        """
