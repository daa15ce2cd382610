"""What jobs in turn share: one Ray cluster, and the servers that the next job has exactly so. Stubs in all seats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slime_launch.errors import ComponentError
from slime_launch.fleets import Kept
from slime_launch.guard import descendants
from slime_launch.machine import free_ports
from slime_launch.plan import LaunchPlan
from slime_launch.schema import ClusterConfig, Config
from tests.slime_launch.clusters import quiet, where
from tests.slime_launch.plans import plan_for
from tests.slime_launch.stubs import stubbed

LENGTH = "rollout.topology.groups.engine.overrides.context_length"


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture
def keep(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    import os

    for name, value in os.environ.items():  # put back whatever a cluster sets
        monkeypatch.setenv(name, value)
    keep = Kept()
    yield keep
    keep.close()


def plan(port: int, *args: str) -> LaunchPlan:
    made = stubbed(plan_for("+experiment=qwen3_grpo", *args))
    return replace(made, cluster=replace(made.cluster, ray_port=port))


def job(keep: Kept, plan: LaunchPlan, folder: Path, fault: Exception | None = None, **cluster: Any) -> dict[str, int]:
    """Run one job to its end, or to its fault; process ids by actor, and of the cluster's guard."""
    (folder / "logs").mkdir(parents=True)
    config = Config(allow_targets=["tests"], cluster=ClusterConfig(**cluster))
    with keep.open(plan, config, folder, quiet()) as home:
        home.fleet.start(home.kept)
        pids = {name: here["pid"] for name, here in where(home.fleet).items()}
        if fault is not None:
            raise fault
        return pids | {"guard": home.cluster.processes()[0]}


def same(one: dict[str, int], other: dict[str, int]) -> set[str]:
    return {name for name in one if one[name] == other[name]}


def test_servers_of_an_identical_entry_stay(keep: Kept, port: int, tmp_path: Path) -> None:
    assert keep.base_port == 0
    first = job(keep, plan(port), tmp_path / "a")
    assert keep.base_port == plan(port).cluster.base_port
    second = job(keep, plan(port, "trainer.optim.lr=1e-5"), tmp_path / "b")
    assert same(first, second) == {"guard", "engine-0"}
    third = job(keep, plan(port, f"+{LENGTH}=128"), tmp_path / "c")
    assert same(second, third) == {"guard"}
    engine_log = tmp_path / "b" / "logs" / "engine-0.log"
    assert engine_log.resolve() == (tmp_path / "a" / "logs" / "engine-0.log").resolve()
    assert not (tmp_path / "c" / "logs" / "engine-0.log").is_symlink()


def test_a_job_that_fails_takes_the_cluster_with_it(keep: Kept, port: int, tmp_path: Path) -> None:
    first = job(keep, plan(port), tmp_path / "a")
    with pytest.raises(ComponentError, match="broke"):
        job(keep, plan(port), tmp_path / "b", ComponentError("it broke"))
    assert descendants(first["guard"]) == []
    assert keep.base_port == 0
    assert same(first, job(keep, plan(port), tmp_path / "c")) == set()


def test_what_the_cluster_was_made_from_must_stay(keep: Kept, port: int, tmp_path: Path) -> None:
    first = job(keep, plan(port), tmp_path / "a")
    second = job(keep, plan(port), tmp_path / "b", object_store_mb=100)
    assert same(first, second) == set()
    more = plan(port, "rollout.topology.groups.engine.num_engines=2")
    assert same(second, job(keep, more, tmp_path / "c", object_store_mb=100)) == set()
