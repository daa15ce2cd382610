"""A cluster of our own: one machine, with GPUs in Ray's books or none."""

from dataclasses import replace
from pathlib import Path

import pytest

from slime_launch.cluster.backend import request
from slime_launch.cluster.local import LocalCluster
from slime_launch.machine import free_ports
from tests.slime_launch.clusters import assert_as_planned, running
from tests.slime_launch.plans import plan_for
from tests.slime_launch.stubs import stubbed

G = "rollout.topology.groups"


def test_one_machine_with_sixteen_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    plan = stubbed(plan_for(
        "+experiment=qwen3_grpo", "rollout.topology.colocated=false", "cluster.gpus_per_node=16",
        f"{G}.engine.num_engines=8", "trainer.parallel.dp=8",
    ))  # fmt: skip
    plan = replace(plan, cluster=replace(plan.cluster, ray_port=free_ports(1)[0]))
    asked = request([plan], store_mb=80, allow_targets=["tests"], log=tmp_path / "ray.log")
    assert asked.num_gpus == 16
    with LocalCluster().connect(asked) as cluster, running(plan, tmp_path) as (seats, fleet):
        seen = assert_as_planned(plan, seats, fleet)
        assert len(cluster.processes()) > 3
    assert seen["engine-7"]["CUDA_VISIBLE_DEVICES"] == "15"
    assert seen["engine-0"]["HF_HUB_OFFLINE"] == "1" and seen["engine-0"]["OMP_NUM_THREADS"] == "1"


def test_on_cpu_nobody_sees_a_gpu(tmp_path: Path) -> None:
    plan = stubbed(plan_for("+experiment=qwen3_grpo"))
    plan = replace(plan, cluster=replace(plan.cluster, ray_port=free_ports(1)[0]))
    asked = request([plan], store_mb=80, allow_targets=["tests"], log=tmp_path / "ray.log")
    with LocalCluster().connect(asked), running(plan, tmp_path) as (seats, fleet):
        seen = assert_as_planned(plan, seats, fleet)
    assert {here["CUDA_VISIBLE_DEVICES"] for here in seen.values()} == {""}
