"""Which node and GPUs each trainer rank and engine gets: a pure function of the config and the GPUs of a node.

GPUs are numbered by node, then by index. The trainer's ranks take the first ones, one each; engine groups follow in the
order of the config, colocated ones from the trainer's first GPU on, going round when they are more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, floor, isclose

from slime_launch.errors import Problem
from slime_launch.schema import Config, EngineGroup

TRAINER = "trainer"


@dataclass(frozen=True)
class Seat:
    """Where one process sits: a node, and GPU indices on it (none on CPU)."""

    node: int = 0
    gpus: tuple[int, ...] = ()

    def __str__(self) -> str:
        if not self.gpus:
            return f"node {self.node}"
        first, last = self.gpus[0], self.gpus[-1]
        return f"node {self.node} gpu {first}" + (f"-{last}" if last > first else "")


@dataclass(frozen=True)
class Placement:
    """Seats of the trainer's ranks, and by group those of each engine, one for each node that it spans."""

    trainer: tuple[Seat, ...]
    engines: Mapping[str, tuple[tuple[Seat, ...], ...]]

    def seats(self) -> Iterator[Seat]:
        """Every seat; several may hold the same GPU."""
        yield from self.trainer
        for engines in self.engines.values():
            for engine in engines:
                yield from engine

    @cached_property
    def tenants(self) -> Counter[tuple[int, int]]:
        """How many processes sit on each (node, GPU)."""
        return Counter((seat.node, gpu) for seat in self.seats() for gpu in seat.gpus)

    def gpus_by_node(self) -> dict[int, int]:
        """GPUs that each node must have; node 0 is always there."""
        needed = {0: 0}
        for node, gpu in self.tenants:
            needed[node] = max(needed.get(node, 0), gpu + 1)
        return dict(sorted(needed.items()))


def world_size(config: Config) -> int:
    """Ranks of the trainer."""
    parallel = config.trainer.parallel
    return parallel.tp * parallel.pp * parallel.dp * parallel.cp


def gpus_per_engine(group: EngineGroup) -> float:
    """GPUs of one engine: what is asked for, or what its parallel sizes take."""
    if group.gpus_per_engine is not None:
        return group.gpus_per_engine
    if group.worker_type == "placeholder":
        return 1.0
    shared = bool(group.overrides.get("enable_dp_attention"))
    return float(group.tp * group.pp * (1 if shared else group.dp))


def num_engines(group: EngineGroup) -> int:
    """Engines of a group."""
    if group.urls is not None:
        return len(group.urls)
    if group.num_engines is not None:
        return group.num_engines
    return 1 if group.num_gpus is None else max(1, floor(group.num_gpus / gpus_per_engine(group) + 1e-9))


def colocated(config: Config, group: EngineGroup) -> bool:
    """Whether a group shares the trainer's GPUs."""
    return config.rollout.topology.colocated if group.colocated is None else group.colocated


def place(config: Config, gpus_per_node: int) -> Placement:
    """Seats for everything; with no GPUs on a node everything sits on node 0."""
    ours = {name: group for name, group in config.rollout.topology.groups.items() if group.urls is None}
    engines: dict[str, tuple[tuple[Seat, ...], ...]] = {}
    if not gpus_per_node:
        engines = {name: ((Seat(),),) * num_engines(group) for name, group in ours.items()}
        return Placement((Seat(),) * world_size(config), engines)
    trainer = tuple(_seat(slot, 1, gpus_per_node) for slot in range(world_size(config)))
    free, shared = float(len(trainer)), 0.0
    for name, group in ours.items():
        together = colocated(config, group)
        start = shared if together else ceil(free - 1e-9)
        ring = len(trainer) if together else None
        engines[name], end = _engines(group, start, gpus_per_node, ring)
        free, shared = (free, end) if together else (end, shared)
    return Placement(trainer, engines)


def _engines(
    group: EngineGroup, start: float, per_node: int, ring: int | None
) -> tuple[tuple[tuple[Seat, ...], ...], float]:
    """(Seats of each engine, the first slot after them); ``ring``: slots are taken round and round."""
    size, cursor, found = gpus_per_engine(group), start, []
    for _ in range(num_engines(group)):
        cursor = _aligned(cursor, size, per_node)
        if ring is not None and cursor + size > ring + 1e-9:
            cursor = 0.0
        found.append(_span(floor(cursor + 1e-9), max(1, round(size)), per_node))
        cursor += size
    return tuple(found), cursor


def _aligned(cursor: float, size: float, per_node: int) -> float:
    """The next slot at which an engine of this size does not straddle what it could avoid: a GPU, or a node."""
    if size < 1:
        whole = floor(cursor + 1e-9)
        return cursor if cursor + size <= whole + 1 + 1e-9 else float(whole + 1)
    slot = ceil(cursor - 1e-9)
    left = per_node - slot % per_node
    return float(slot + left if size > left and left < per_node else slot)


def _span(slot: int, size: int, per_node: int) -> tuple[Seat, ...]:
    seats = []
    while size > 0:
        here = min(size, per_node - slot % per_node)
        seats.append(_seat(slot, here, per_node))
        slot, size = slot + here, size - here
    return tuple(seats)


def _seat(slot: int, size: int, per_node: int) -> Seat:
    first = slot % per_node
    return Seat(slot // per_node, tuple(range(first, first + size)))


def group_problems(name: str, group: EngineGroup, per_node: int) -> Iterator[Problem]:
    """Counts of one group that contradict each other or do not fit onto whole GPUs and nodes."""
    key, size = f"rollout.topology.groups.{name}", gpus_per_engine(group)
    if group.num_engines is not None and group.num_gpus is not None:
        yield Problem(f"{key}.num_gpus", group.num_gpus, "num_engines is given too", "give one of the two")
    elif group.num_gpus is not None and not isclose(group.num_gpus / size, round(group.num_gpus / size)):
        reason = f"does not divide into engines of {size:g} GPUs"
        yield Problem(f"{key}.num_gpus", group.num_gpus, reason, f"give a multiple of {size:g}")
    if size > 1 and not size.is_integer():
        yield Problem(f"{key}.gpus_per_engine", size, "above 1 only whole GPUs", "round it")
    wanted = gpus_per_engine(_unset_size(group))
    if group.worker_type != "placeholder" and size >= 1 and size != wanted:
        reason = f"tp={group.tp} x pp={group.pp} x dp={group.dp} take {wanted:g} GPUs"
        yield Problem(f"{key}.gpus_per_engine", size, reason, "leave it null, or change the parallel sizes")
    if size < 1 and wanted > 1:
        yield Problem(f"{key}.gpus_per_engine", size, f"the engine takes {wanted:g} GPUs", "a share is for one GPU")
    if per_node and size > per_node and size % per_node:
        reason = f"an engine of {size:g} GPUs does not fill whole nodes of {per_node}"
        yield Problem(f"{key}.tp", group.tp, reason, f"make tp x pp x dp a multiple of {per_node}")
    elif per_node and 1 <= size < per_node and per_node % size:
        reason = f"engines of {size:g} GPUs leave some of a node's {per_node} unused"
        yield Problem(f"{key}.tp", group.tp, reason, f"make tp x pp x dp a divisor of {per_node}")


def _unset_size(group: EngineGroup) -> EngineGroup:
    return replace(group, gpus_per_engine=None)
