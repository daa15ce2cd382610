"""What each node of a plan must have, what a cluster's machines offer, and the difference in words. Pure functions."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from slime_launch.errors import LaunchError
from slime_launch.plan import LaunchPlan


class PlacementError(LaunchError):
    """The cluster cannot seat the plan; nothing of it was started."""


@dataclass(frozen=True, order=True)
class Need:
    """GPUs and CPUs of one logical node, those of placeholders included."""

    gpus: int
    cpus: int

    def __str__(self) -> str:
        parts = [f"{self.gpus} GPUs"] * (self.gpus > 0) + [f"{self.cpus} CPUs"] * (self.cpus > 0)
        return " and ".join(parts) or "nothing"


@dataclass(frozen=True)
class Offer:
    """One machine of a cluster, with the GPUs and CPUs that it has, or has free."""

    node: str
    address: str
    gpus: float
    cpus: float


def node_needs(plan: LaunchPlan) -> tuple[Need, ...]:
    """What each logical node must have, node 0 first."""
    cpus = [0] * len(plan.cluster.gpus)
    for actor in plan.actors:
        cpus[actor.node] += actor.resources.cpu
    return tuple(Need(gpus, count) for gpus, count in zip(plan.cluster.gpus, cpus, strict=True))


def even_out(needs: Sequence[Need], offers: Sequence[Offer]) -> tuple[Need, ...]:
    """As many CPUs on every node as on the fullest one, where the machines have them.

    Nodes that need the same can be put in the order of their addresses.
    """
    most = max(need.cpus for need in needs)
    even = tuple(Need(need.gpus, most) for need in needs)
    return even if not missing(even, offers) else tuple(needs)


def missing(needs: Sequence[Need], offers: Sequence[Offer]) -> dict[int, tuple[Need, Offer | None]]:
    """By logical node what its machine lacks, the largest need on the largest machine; None: there is no machine."""
    by_size = sorted(offers, key=lambda offer: (offer.gpus, offer.cpus, offer.node), reverse=True)
    order = sorted(range(len(needs)), key=lambda node: needs[node], reverse=True)
    lacking = {}
    for rank, node in enumerate(order):
        offer = by_size[rank] if rank < len(by_size) else None
        gpus, cpus = (offer.gpus, offer.cpus) if offer else (0.0, 0.0)
        lack = Need(max(0, ceil(needs[node].gpus - gpus)), max(0, ceil(needs[node].cpus - cpus)))
        if lack != Need(0, 0) or offer is None:
            lacking[node] = (lack, offer)
    return dict(sorted(lacking.items()))


def deficit(needs: Sequence[Need], offers: Sequence[Offer], free: bool = False) -> str | None:
    """What is missing for a plan, and on which nodes, None when nothing is.

    free: the offers are what nobody uses now, rather than all that there is.
    """
    lacking = missing(needs, offers)
    if not lacking:
        return None
    kind = "free" if free else "has"
    there = ", ".join(f"{o.address} {kind} {Need(int(o.gpus), int(o.cpus))}" for o in sorted(offers, key=address_key))
    where = ", ".join(
        f"node {node}: {lack}" + ("" if offer else ", no machine for it") for node, (lack, offer) in lacking.items()
    )
    total = Need(sum(lack.gpus for lack, _ in lacking.values()), sum(lack.cpus for lack, _ in lacking.values()))
    wanted = Need(sum(need.gpus for need in needs), sum(need.cpus for need in needs))
    nodes = f"{len(needs)} node" + "s" * (len(needs) > 1)
    return f"the plan takes {wanted} on {nodes}; {there or 'no machine is there'}; missing: {total} ({where})"


def address_key(offer: Offer) -> tuple[int, str, str]:
    """Order of machines: by address as a number, then by Ray's node id."""
    try:
        number = int(ipaddress.ip_address(offer.address))
    except ValueError:
        number = 0
    return number, offer.address, offer.node


def in_order(needs: Sequence[Need], found: Sequence[Offer]) -> tuple[int, ...]:
    """The bundle of each logical node: bundle ``k`` was reserved for ``needs[k]`` and landed on ``found[k]``.

    Among nodes that need the same, lower addresses come first.
    """
    bundles = list(range(len(needs)))
    for need in set(needs):
        alike = [node for node, other in enumerate(needs) if other == need]
        for node, bundle in zip(alike, sorted(alike, key=lambda b: address_key(found[b])), strict=True):
            bundles[node] = bundle
    return tuple(bundles)
