"""A plan for the eyes: a table with a row for each group of actors, a Mermaid graph, and what differs between plans."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from slime_launch.plan import Actor, LaunchPlan

_COLUMNS = ("phase", "actors", "kind", "where", "parallel", "each takes", "memory")
_ABSENT = "(absent)"
_PARALLEL = {"tp": "tp_size", "pp": "pp_size", "dp": "dp_size", "nodes": "nnodes"}


def print_plan(plan: LaunchPlan, console: Console) -> None:
    """The plan as a table, one row a group of actors in starting order; then its edges and the servers' arguments."""
    nodes = f", {len(plan.cluster.gpus)} nodes" if len(plan.cluster.gpus) > 1 else ""
    table = Table(title=f"launch plan: {plan.name} on {plan.platform}{nodes}", title_justify="left")
    for name in _COLUMNS:
        table.add_column(name, overflow="fold")
    for actors in plan.groups().values():
        table.add_row(*_row(actors))
    for placeholder in plan.placeholders:
        where = f"node {placeholder.node} gpu {_ranges(placeholder.gpus)}"
        table.add_row("", placeholder.name, "reserved", where, "", "", "")
    console.print(table)
    if not any(actor.memory_mb for actor in plan.of_kind("trainer")):
        console.print("no memory estimate: the sizes of this model's architecture are not known")
    lines = [f"{edge.src} -> {edge.dst}: {edge.name}" for edge in plan.edges]
    for group, actors in plan.groups().items():
        if args := actors[0].args.get("server_args"):
            lines.append(f"{group} takes " + ", ".join(f"{name}={value}" for name, value in args.items()))
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _row(actors: Sequence[Actor]) -> tuple[str, ...]:
    first = actors[0]
    memory = sum(first.memory_mb.values())
    return (
        str(first.phase), _names(actors), first.kind, _where(actors), _parallel(first), str(first.resources),
        _size(memory) if memory else "",
    )  # fmt: skip


def _names(actors: Sequence[Actor]) -> str:
    """``engine x 4`` for engine-0 to engine-3, or the one name."""
    return actors[0].name if len(actors) == 1 else f"{actors[0].group} x {len(actors)}"


def _where(actors: Sequence[Actor]) -> str:
    nodes = _ranges(sorted({actor.node for actor in actors}))
    if not actors[0].gpus:
        return f"node {nodes}"
    gpus = sorted({gpu for actor in actors for gpu in actor.gpus})
    return f"node {nodes} gpu {_ranges(gpus)}"


def _ranges(numbers: Sequence[int]) -> str:
    """``0-3,6`` for 0, 1, 2, 3, 6."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _parallel(actor: Actor) -> str:
    args = actor.args.get("server_args") or actor.args.get("expected") or {}
    if actor.kind == "trainer":
        sizes = {name: actor.args[name] for name in ("tp", "pp", "cp")}
        sizes["dp"] = actor.args["world_size"] // prod(sizes.values())
        return " ".join(f"{name}={size}" for name, size in sizes.items() if size > 1)
    return " ".join(f"{short}={args[name]}" for short, name in _PARALLEL.items() if args.get(name, 1) != 1)


def _size(megabytes: float) -> str:
    return f"{megabytes / 1024:.1f} GB" if megabytes >= 1024 else f"{megabytes:.0f} MB"


def mermaid(plan: LaunchPlan) -> str:
    """The plan as a Mermaid flowchart: a node for each group, an arrow for each edge."""
    lines = ["flowchart LR"]
    for group, actors in plan.groups().items():
        label = f"{_names(actors)}<br/>{actors[0].kind}, {_where(actors)}"
        lines.append(f'    {_id(group)}["{label}"]')
    lines += [f'    {p.name}["{p.name}<br/>reserved"]' for p in plan.placeholders]
    lines += [f"    {_id(edge.src)} -- {edge.name} --> {_id(edge.dst)}" for edge in plan.edges]
    return "\n".join(lines)


def _id(group: str) -> str:
    return "g_" + group.replace("-", "_")


def differences(old: LaunchPlan, new: LaunchPlan) -> list[str]:
    """One line for each value that differs, actors matched by name: ``key: old -> new``."""
    before, after = (dict(_leaves(_by_name(plan))) for plan in (old, new))
    keys = list(dict.fromkeys([*before, *after]))
    return [
        f"{key}: {before.get(key, _ABSENT)} -> {after.get(key, _ABSENT)}"
        for key in keys
        if before.get(key, _ABSENT) != after.get(key, _ABSENT)
    ]


def _by_name(plan: LaunchPlan) -> dict[str, Any]:
    tree: dict[str, Any] = msgspec.to_builtins(plan)
    tree["actors"] = {actor["name"]: actor for actor in tree["actors"]}
    tree["edges"] = {f"{edge['src']} -> {edge['dst']}: {edge['name']}": "drawn" for edge in tree["edges"]}
    return tree


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, value
