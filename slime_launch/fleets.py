"""Where a run gets its cluster and its servers from: of its own, or those that the job before it left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from slime_launch.cluster.backend import Backend, Connection, request
from slime_launch.cluster.seats import Seats, reserve
from slime_launch.errors import LaunchError
from slime_launch.launch import Fleet, Member
from slime_launch.plan import ClusterPlan, LaunchPlan
from slime_launch.progress import Progress
from slime_launch.schema import Config
from slime_launch.targets import instantiate


@dataclass(frozen=True)
class Ground:
    """A cluster and seats on it, with what they were made from."""

    cluster: Connection
    seats: Seats
    made_from: tuple[object, ...]


@dataclass(frozen=True)
class Home:
    """A fleet to start with what is kept of the one before."""

    cluster: Connection
    fleet: Fleet
    kept: Mapping[str, Member] = field(default_factory=dict)


def _made_from(plan: LaunchPlan, config: Config) -> tuple[object, ...]:
    """What two runs on one cluster must have in common."""
    cluster: ClusterPlan = plan.cluster
    return (
        cluster.backend, cluster.loopback, cluster.base_port, cluster.ray_port, plan.platform,
        config.cluster.object_store_mb, tuple(config.allow_targets),
    )  # fmt: skip


def _ground(stack: ExitStack, plan: LaunchPlan, config: Config, run_dir: Path, progress: Progress) -> Ground:
    backend: Backend = instantiate(plan.cluster.backend)
    asked = request(
        [plan],
        store_mb=config.cluster.object_store_mb,
        allow_targets=config.allow_targets,
        log=run_dir / "logs" / "ray.log",
    )
    with progress.waiting("starting Ray"):
        cluster = stack.enter_context(backend.connect(asked))
    seats = stack.enter_context(reserve(plan, run_dir, progress, config.cluster.nodes_timeout_s))
    return Ground(cluster, seats, _made_from(plan, config))


@contextmanager
def own(plan: LaunchPlan, config: Config, run_dir: Path, progress: Progress) -> Iterator[Home]:
    """A cluster for this run alone, gone with every process on it when the block is left."""
    with ExitStack() as stack:
        ground = _ground(stack, plan, config, run_dir, progress)
        fleet = Fleet(plan, ground.seats, run_dir, progress, config.cluster.start_timeout_s)
        stack.callback(fleet.stop)
        yield Home(ground.cluster, fleet)


class Kept:
    """One cluster for jobs that run in turn; servers that the next job has exactly so go on.

    A job that does not end well takes the cluster with it, so that the next one starts afresh.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._ground: Ground | None = None
        self._fleet: Fleet | None = None
        self._logs: dict[str, Path] = {}

    @property
    def base_port(self) -> int:
        """First port of the block that the next plan should have; 0 when there is nothing to keep."""
        return self._fleet.plan.cluster.base_port if self._fleet else 0

    @contextmanager
    def open(self, plan: LaunchPlan, config: Config, run_dir: Path, progress: Progress) -> Iterator[Home]:
        """The next job's fleet; everything stays when the block is left without an exception."""
        kept = self._take_over(plan, config, progress)
        if self._ground is None:
            self._ground = _ground(self._stack, plan, config, run_dir, progress)
        fleet = Fleet(plan, self._ground.seats, run_dir, progress, config.cluster.start_timeout_s)
        self._fleet = fleet
        self._link_logs(kept, run_dir)
        try:
            yield Home(self._ground.cluster, fleet, kept)
        except BaseException:
            self.close()
            raise

    def _take_over(self, plan: LaunchPlan, config: Config, progress: Progress) -> Mapping[str, Member]:
        ground, before = self._ground, self._fleet
        if ground is None or before is None:
            self.close()
            return {}
        if ground.made_from != _made_from(plan, config) or not ground.seats.fits(plan):
            progress.line("  another cluster is needed: the one before ends")
            self.close()
            return {}
        try:
            kept = before.hand_over(plan)
        except LaunchError as error:
            progress.line(f"  the job before did not let go ({error}); its cluster ends")
            self.close()
            return {}
        if kept:
            progress.line(f"  {', '.join(sorted(kept))} kept from the job before")
        return kept

    def _link_logs(self, kept: Mapping[str, Member], run_dir: Path) -> None:
        """Logs of servers that stay go on where they are; the new run folder points there."""
        self._logs = {
            actor.name: self._logs[actor.name] if actor.name in kept else run_dir / "logs" / f"{actor.name}.log"
            for actor in (self._fleet.plan.actors if self._fleet else ())
        }
        for name in kept:
            link = run_dir / "logs" / f"{name}.log"
            if link.is_symlink() or link.exists():  # of an earlier attempt at this job
                link.rename(link.with_name(f"{link.name}.earlier"))
            link.symlink_to(self._logs[name].resolve())

    def close(self) -> None:
        """End the fleet and the cluster."""
        fleet, self._fleet, self._ground, self._logs = self._fleet, None, None, {}
        stack, self._stack = self._stack, ExitStack()
        with stack:
            if fleet is not None:
                with suppress(LaunchError):
                    fleet.stop()
