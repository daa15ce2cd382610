"""The launch plan: actors, edges and phases as frozen data. What is run is exactly what is written here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one actor takes: CPU threads and GPUs (a fraction shares one)."""

    cpu: int
    gpu: float = 0.0

    def __str__(self) -> str:
        return f"{self.cpu} cpu" + (f", {self.gpu:g} gpu" if self.gpu else "")


@dataclass(frozen=True, kw_only=True)
class Actor:
    """One node of the graph.

    kind: checkpoint, encoder, regular, router, trainer or rollout.
    component: the ``_target_`` it hosts, constructed with ``args``.
    phase: 0 starts first; an actor starts once all its ``needs`` are provided.
    """

    name: str
    kind: str
    component: str
    phase: int = 0
    resources: Resources
    needs: tuple[str, ...]
    provides: tuple[str, ...]
    args: dict[str, Any]


@dataclass(frozen=True, kw_only=True, order=True)
class Edge:
    """``src`` provides ``name``, ``dst`` needs it."""

    src: str
    dst: str
    name: str


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """The whole graph. ``platform`` is the device it was made for: cpu or cuda."""

    schema_version: int = SCHEMA_VERSION
    name: str
    platform: str
    ray_port: int
    actors: tuple[Actor, ...]
    edges: tuple[Edge, ...] = field(default=())

    def of_kind(self, kind: str) -> tuple[Actor, ...]:
        """The actors of one kind, in plan order."""
        return tuple(actor for actor in self.actors if actor.kind == kind)

    def phases(self) -> list[tuple[Actor, ...]]:
        """Actors by phase, first to last."""
        last = max(actor.phase for actor in self.actors)
        return [tuple(actor for actor in self.actors if actor.phase == phase) for phase in range(last + 1)]

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


def draw_edges(actors: Sequence[Actor]) -> list[Edge]:
    """Every provider of a name, joined to everyone who needs it; a need that nobody provides draws nothing."""
    providers: dict[str, list[str]] = {}
    for actor in actors:
        for name in actor.provides:
            providers.setdefault(name, []).append(actor.name)
    return [Edge(src=src, dst=a.name, name=name) for a in actors for name in a.needs for src in providers.get(name, [])]


def assign_phases(actors: Sequence[Actor], edges: Sequence[Edge]) -> dict[str, int]:
    """Longest path from an actor that needs nothing; the graph must have no cycle."""
    phases = {actor.name: 0 for actor in actors}
    for _ in actors:
        changed = False
        for edge in edges:
            if phases[edge.dst] <= phases[edge.src]:
                phases[edge.dst] = phases[edge.src] + 1
                changed = True
        if not changed:
            return phases
    raise ValueError(f"the edges form a cycle among {sorted(phases)}")
