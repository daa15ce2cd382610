"""A run's seats: one Ray placement group with a bundle for each node of the plan, and which GPUs that turned out to be.

The group holds the reservation. Actors take no resources of their own within it, since several may share a GPU; each
is told the devices of its seat instead.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slime_launch import signals
from slime_launch.cluster.needs import Need, Offer, PlacementError, deficit, even_out, in_order, node_needs
from slime_launch.cluster.probe import Probe, Seen
from slime_launch.host import Site
from slime_launch.plan import Actor, LaunchPlan
from slime_launch.progress import Progress

_TICK_S = 0.25
_PROBE_TIMEOUT_S = 120.0


class Seats:
    """Where each logical node of a plan landed. Made by ``reserve``."""

    def __init__(self, group: Any, bundles: Sequence[int], sizes: Sequence[Need], nodes: Sequence[Seen]) -> None:
        self._group, self._bundles, self._sizes = group, tuple(bundles), tuple(sizes)
        self.nodes = tuple(nodes)

    @property
    def addresses(self) -> dict[str, str]:
        """``node3`` -> the address of logical node 3."""
        return {f"node{index}": node.address for index, node in enumerate(self.nodes)}

    def site(self, actor: Actor) -> Site:
        """The devices that an actor may use, and its node's address."""
        node = self.nodes[actor.node]
        return Site(devices=tuple(node.gpus[gpu] for gpu in actor.gpus), address=node.address)

    def options(self, node: int) -> dict[str, Any]:
        """Ray options that put an actor on a logical node."""
        return _options(self._group, self._bundles[node])

    def fits(self, plan: LaunchPlan) -> bool:
        """Whether another plan can sit here too, once this one's actors are gone."""
        needs = node_needs(plan)
        pairs = zip(needs, self._sizes, strict=False)
        return len(needs) <= len(self._sizes) and all(
            need.gpus <= size.gpus and need.cpus <= size.cpus for need, size in pairs
        )


@contextmanager
def reserve(plan: LaunchPlan, run_dir: Path, progress: Progress, timeout_s: float) -> Iterator[Seats]:
    """Seats for a plan, given back when the block is left, which ends every actor on them.

    Raises PlacementError when the cluster has no such nodes within ``timeout_s``, at once where none can join.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    needs = node_needs(plan)
    sizes = even_out(needs, _offers(free=True))
    strategy = "STRICT_SPREAD" if len(sizes) > 1 else "STRICT_PACK"
    if plan.cluster.loopback:
        _refuse(needs, deficit(needs, _offers()))
    group = placement_group(
        [_bundle(size) for size in sizes], strategy=strategy, name=f"{plan.name}-{uuid.uuid4().hex[:8]}"
    )
    try:
        with progress.waiting(f"waiting for {len(sizes)} nodes"):
            _await(group, needs, progress, timeout_s)
            seen = _look(group, plan, sizes, run_dir, progress)
        found = [Offer(each.node, each.address, 0, 0) for each in seen]
        bundles = in_order(sizes, found)
        seats = Seats(group, bundles, sizes, [seen[bundle] for bundle in bundles])
        for index, node in enumerate(seats.nodes if not plan.cluster.loopback else ()):
            progress.line(f"  node {index}: {node.address}" + (f" gpus {','.join(node.gpus)}" if node.gpus else ""))
        yield seats
    finally:
        if ray.is_initialized():
            remove_placement_group(group)


def _bundle(need: Need) -> dict[str, float]:
    bundle = {"GPU": float(need.gpus), "CPU": float(need.cpus)}
    return {name: amount for name, amount in bundle.items() if amount} or {"CPU": 1.0}


def _options(group: Any, bundle: int) -> dict[str, Any]:
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
    return {"num_cpus": 0, "scheduling_strategy": strategy}


def _offers(free: bool = False) -> list[Offer]:
    """The machines of the cluster, with all that they have or what nobody uses."""
    import ray
    from ray._private.state import available_resources_per_node

    unused = available_resources_per_node() if free else {}
    alive = [node for node in ray.nodes() if node["Alive"]]
    offers = []
    for node in alive:
        has = unused.get(node["NodeID"], {}) if free else node["Resources"]
        offers.append(Offer(node["NodeID"], node["NodeManagerAddress"], has.get("GPU", 0.0), has.get("CPU", 0.0)))
    return offers


def _refuse(needs: Sequence[Need], text: str | None) -> None:
    if text is not None:
        raise PlacementError(f"the run cannot be placed: {text}")


def _await(group: Any, needs: Sequence[Need], progress: Progress, timeout_s: float) -> None:
    import ray
    from ray.util.placement_group import remove_placement_group

    deadline, ready = time.monotonic() + timeout_s, [group.ready()]
    while not ray.wait(ready, timeout=_TICK_S)[0]:
        signals.check()
        progress.tick()
        if time.monotonic() > deadline:
            remove_placement_group(group)
            _refuse(needs, deficit(needs, _offers()))
            _refuse(needs, deficit(needs, _offers(free=True), free=True))
            raise PlacementError(f"the run was not placed within {timeout_s:.0f} s; its cluster may be starting nodes")


def _look(group: Any, plan: LaunchPlan, sizes: Sequence[Need], run_dir: Path, progress: Progress) -> list[Seen]:
    """What each bundle is: all of them looked at side by side."""
    import ray

    # on a cluster of our own the launcher has looked for free ports, and Ray's head has one of them by now
    base, count = plan.cluster.base_port, 0 if plan.cluster.loopback else plan.cluster.num_ports
    ports = range(base, base + count)
    kind = ray.remote(Probe)
    probes = [kind.options(num_gpus=size.gpus, **_options(group, k)).remote() for k, size in enumerate(sizes)]
    try:
        calls = [probe.look.remote(str(run_dir), ports) for probe in probes]
        deadline, left = time.monotonic() + _PROBE_TIMEOUT_S, calls
        while left:
            _, left = ray.wait(left, num_returns=len(left), timeout=_TICK_S)
            signals.check()
            progress.tick()
            if time.monotonic() > deadline:
                raise PlacementError(f"{len(left)} nodes did not answer within {_PROBE_TIMEOUT_S:.0f} s")
        seen: list[Seen] = _results(calls)
    finally:
        for probe in probes:
            ray.kill(probe)
    faults = [f"{each.address}: {each.fault}" for each in seen if each.fault]
    if faults:
        raise PlacementError("nodes that cannot take the run: " + "; ".join(faults))
    return seen


def _results(calls: list[Any]) -> list[Seen]:
    import ray

    try:
        found: list[Seen] = ray.get(calls)
    except ray.exceptions.RayError as error:
        text = " ".join(str(error).split())[:500]
        raise PlacementError(
            f"a node cannot run slime-launch ({text}); it needs the same Python, packages and folders"
        ) from None
    return found
