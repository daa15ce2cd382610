"""Which running servers of one plan serve the next one as they are. A pure function of the two plans."""

from __future__ import annotations

from collections.abc import Collection

from slime_launch.plan import Actor, LaunchPlan

SERVERS = ("encoder", "regular", "prefill", "decode", "follower", "external", "router")
ONE_SHOT = ("checkpoint",)
"""Kinds whose work is done once they have started."""


def reusable(old: LaunchPlan, new: LaunchPlan, alive: Collection[str]) -> set[str]:
    """Names of the servers that stay: same entry in both plans, and so are all that they were started with.

    alive: names of the old plan's actors that still run. A server whose providers changed has been told other URLs or
    keys than it would be told now, so it goes too; so does every node of an engine of which one node goes.
    """
    before = {actor.name: actor for actor in old.actors}
    after = {actor.name: actor for actor in new.actors}
    kept = {
        name
        for name, actor in after.items()
        if name in before and _same(before[name], actor) and _still_there(actor, alive)
    }
    while gone := {name for name in kept if not _fed_alike(before, after, name, kept) or _parted(after, name, kept)}:
        kept -= gone
    return {name for name in kept if after[name].kind in SERVERS}


def _same(old: Actor, new: Actor) -> bool:
    fields = ("kind", "group", "component", "node", "gpus", "needs", "provides", "args")
    return all(getattr(old, field) == getattr(new, field) for field in fields)


def _still_there(actor: Actor, alive: Collection[str]) -> bool:
    return actor.kind in ONE_SHOT or (actor.kind in SERVERS and actor.name in alive)


def _fed_alike(before: dict[str, Actor], after: dict[str, Actor], name: str, kept: set[str]) -> bool:
    """Whether what this actor needs comes from the same actors, which stay."""
    givers = _givers(after, after[name])
    return givers == _givers(before, before[name]) and givers <= kept


def _givers(actors: dict[str, Actor], taker: Actor) -> set[str]:
    return {other.name for other in actors.values() for name in taker.needs if name in other.provides}


def _parted(after: dict[str, Actor], name: str, kept: set[str]) -> bool:
    """Whether another node of this engine goes: its nodes are one process group."""
    start = _start_address(after[name])
    return start is not None and any(
        other.name not in kept for other in after.values() if _start_address(other) == start
    )


def _start_address(actor: Actor) -> str | None:
    server_args = actor.args.get("server_args")
    return server_args.get("dist_init_addr") if isinstance(server_args, dict) else None
