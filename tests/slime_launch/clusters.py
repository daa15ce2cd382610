"""Ray clusters on the loopback interface with GPUs that exist in Ray's books only; connected, with a token."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console

from slime_launch.cluster.environment import actor_environment, loopback_environment, token_environment
from slime_launch.cluster.seats import Seats, reserve
from slime_launch.cluster.session import ray_session, read_auth_anew
from slime_launch.launch import Fleet
from slime_launch.plan import LaunchPlan
from slime_launch.progress import Progress


def quiet() -> Progress:
    """Progress that nobody sees."""
    return Progress(Console(quiet=True))


@contextmanager
def logical_nodes(gpus: Sequence[int], folder: Path, cpus: int = 64) -> Iterator[None]:
    """One raylet for each entry of ``gpus``, all on this machine."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text("b" * 64)
    env = actor_environment(["tests"]) | loopback_environment() | token_environment(token)
    with mock.patch.dict(os.environ, env):
        from ray.cluster_utils import Cluster

        read_auth_anew()  # other tests of this process had other tokens
        cluster = Cluster()
        try:
            for count in gpus:
                cluster.add_node(
                    num_gpus=count, num_cpus=cpus, node_ip_address="127.0.0.1", include_dashboard=False,
                    object_store_memory=80 * 2**20,
                )  # fmt: skip
            with ray_session(cluster.address):
                yield
        finally:
            cluster.shutdown()


@contextmanager
def running(plan: LaunchPlan, folder: Path) -> Iterator[tuple[Seats, Fleet]]:
    (folder / "logs").mkdir(exist_ok=True)
    with reserve(plan, folder, quiet(), 30.0) as seats:
        fleet = Fleet(plan, seats, folder, quiet(), 60.0)
        try:
            fleet.start()
            yield seats, fleet
        finally:
            fleet.stop()


def where(fleet: Fleet) -> dict[str, dict[str, Any]]:
    """What each actor that still runs sees."""
    names = [actor.name for actor in fleet.plan.actors if actor.kind != "checkpoint"]
    return dict(zip(names, fleet.call(names, "where", what="looking", timeout_s=30.0), strict=True))


def assert_as_planned(plan: LaunchPlan, seats: Seats, fleet: Fleet) -> dict[str, dict[str, Any]]:
    seen = where(fleet)
    assert len({node.node for node in seats.nodes}) == len(plan.cluster.gpus), "one machine for each node of the plan"
    for actor in plan.actors:
        if actor.kind == "checkpoint":
            continue
        node, here = seats.nodes[actor.node], seen[actor.name]
        assert here["node"] == node.node, actor.name
        assert here["CUDA_VISIBLE_DEVICES"] == ",".join(node.gpus[gpu] for gpu in actor.gpus), actor.name
        assert here["GLOO_SOCKET_IFNAME"] == "lo"
    return seen
