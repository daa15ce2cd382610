"""Rules about who picks the engine, and the data-parallel rank, of a request."""

from __future__ import annotations

from collections.abc import Iterator

from slime_launch.checks.facts import Facts, Rule
from slime_launch.errors import Problem
from slime_launch.schema import ACTOR
from slime_launch.topology import SPLIT, routing

_DP_AWARE = "rollout.router_args.dp_aware"


def direct_requests_need_whole_engines(f: Facts) -> Iterator[Problem]:
    """A prefill engine hands its KV cache to a decode engine that the router paired it with."""
    split = f.serving(ACTOR, *SPLIT)
    if routing(f.config) == "direct" and split:
        reason = f"{' and '.join(split)} are prefill and decode engines, which a router has to pair for each request"
        yield Problem("rollout.routing", "direct", reason, "use auto or router, or regular engines")


def one_decides_about_ranks(f: Facts) -> Iterator[Problem]:
    """A dp-aware router names the rank of each request; nobody else does, and it has to be there."""
    if not f.config.rollout.router_args.get("dp_aware"):
        return
    if routing(f.config) == "direct" and len(f.models) == 1:
        reason = "no router is planned: the rollout picks engines and ranks itself"
        yield Problem(_DP_AWARE, True, reason, "set rollout.routing=router, or remove it")
    split = [name for model in f.models for name in f.serving(model, *SPLIT)]
    if split:
        reason = f"prefill and decode engines ({', '.join(split)}) find their rank by the bootstrap room, not by name"
        yield Problem(_DP_AWARE, True, reason, "remove it, or use regular engines")


RULES: tuple[Rule, ...] = (direct_requests_need_whole_engines, one_decides_about_ranks)
