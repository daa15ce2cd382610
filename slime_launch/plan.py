"""The launch plan: actors, edges and phases as frozen data. What is run is exactly what is written here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

SCHEMA_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one actor takes: CPU threads and GPUs (a fraction shares them)."""

    cpu: int
    gpu: float = 0.0

    def __str__(self) -> str:
        return f"{self.cpu} cpu" + (f", {self.gpu:g} gpu" if self.gpu else "")


@dataclass(frozen=True, kw_only=True)
class Actor:
    """One node of the graph.

    kind: checkpoint, encoder, regular, prefill, decode, follower, external, router, trainer or rollout.
    group: actors that are alike and start together. component: the ``_target_`` it hosts, constructed with ``args``.
    node, gpus: where it sits; GPU indices on that node. phase: 0 starts first.
    needs, provides: names, those of one served model as ``model/name``; it starts once all its ``needs`` are provided.
    args: a ``{node3}`` in a string is the address of node 3, which the launcher fills in.
    memory_mb: estimate by what it is for, on the fullest of its devices; empty where nothing is known.
    """

    name: str
    kind: str
    group: str
    component: str
    phase: int = 0
    node: int = 0
    gpus: tuple[int, ...] = ()
    resources: Resources
    needs: tuple[str, ...]
    provides: tuple[str, ...]
    args: dict[str, Any]
    memory_mb: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, order=True)
class Edge:
    """The actors of group ``src`` that provide ``name`` hand it to those of group ``dst`` that need it."""

    src: str
    dst: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Placeholder:
    """GPUs of a node that are kept free of anything of ours."""

    name: str
    node: int
    gpus: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ClusterPlan:
    """The machines: what gives the run its Ray cluster, and what each node must have.

    base_port, num_ports: the block of ports that every node uses. gpus: by node, at least one entry.
    """

    backend: dict[str, Any]
    loopback: bool
    base_port: int
    num_ports: int
    ray_port: int
    gpus: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """The whole graph. ``platform`` is the device it was made for: cpu or cuda."""

    schema_version: int = SCHEMA_VERSION
    name: str
    platform: str
    cluster: ClusterPlan
    actors: tuple[Actor, ...]
    edges: tuple[Edge, ...] = field(default=())
    placeholders: tuple[Placeholder, ...] = field(default=())

    def of_kind(self, *kinds: str) -> tuple[Actor, ...]:
        """The actors of some kinds, in plan order."""
        return tuple(actor for actor in self.actors if actor.kind in kinds)

    def phases(self) -> list[tuple[Actor, ...]]:
        """Actors by phase, first to last."""
        phases: list[list[Actor]] = [[] for _ in range(1 + max(actor.phase for actor in self.actors))]
        for actor in self.actors:
            phases[actor.phase].append(actor)
        return [tuple(actors) for actors in phases]

    def groups(self) -> dict[str, list[Actor]]:
        """Actors by group, in starting order."""
        found: dict[str, list[Actor]] = {}
        for actor in self.actors:
            found.setdefault(actor.group, []).append(actor)
        return found

    def to_json(self) -> str:
        """The plan as indented JSON, keys in a stable order."""
        return msgspec.json.format(msgspec.json.encode(self, order="deterministic"), indent=2).decode()

    def write(self, file: Path) -> None:
        """Write the plan as JSON."""
        file.write_text(self.to_json() + "\n")


def read_plan(file: Path) -> LaunchPlan:
    """Read a plan that ``LaunchPlan.write`` wrote.

    Raises msgspec.ValidationError when the file is something else.
    """
    return msgspec.json.decode(file.read_bytes(), type=LaunchPlan)


def bare(name: str) -> str:
    """A need or provision without the model it belongs to: ``encoder_url`` of ``actor/encoder_url``."""
    return name.rpartition("/")[2]


def draw_edges(actors: Sequence[Actor]) -> list[Edge]:
    """Every group that provides a name, joined to those that need it; a need that nobody provides draws nothing."""
    providers: dict[str, dict[str, None]] = {}
    takers: dict[tuple[str, str], None] = {}
    for actor in actors:
        for name in actor.provides:
            providers.setdefault(name, {})[actor.group] = None
        takers |= dict.fromkeys((actor.group, name) for name in actor.needs)
    return [Edge(src=src, dst=dst, name=name) for dst, name in takers for src in providers.get(name, ())]


def assign_phases(groups: Sequence[str], edges: Sequence[Edge]) -> dict[str, int]:
    """Longest path to each group from one that needs nothing.

    Raises ValueError when the edges form a cycle.
    """
    phases = dict.fromkeys(groups, 0)
    for _ in range(len(phases) + 1):
        late = [edge for edge in edges if phases[edge.dst] <= phases[edge.src]]
        if not late:
            return phases
        for edge in late:
            phases[edge.dst] = max(phases[edge.dst], phases[edge.src] + 1)
    raise ValueError(f"the edges form a cycle among {sorted(phases)}")


def fill_in(value: Any, addresses: Mapping[str, str]) -> Any:
    """``args`` with every ``{node3}`` replaced by the address that ``addresses`` gives for it."""
    if isinstance(value, str) and "{node" in value:
        for name, address in addresses.items():
            value = value.replace(f"{{{name}}}", address)
        return value
    if isinstance(value, dict):
        return {key: fill_in(item, addresses) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [fill_in(item, addresses) for item in value]
    return value
