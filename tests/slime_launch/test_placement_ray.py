"""Plans from real topologies on Ray's placement groups: each process is where the plan says and sees its own GPUs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from slime_launch.cluster.needs import PlacementError
from slime_launch.cluster.seats import reserve
from slime_launch.errors import ComponentError, DeadlineError, LogprobGapError
from slime_launch.launch import Fleet
from slime_launch.media import LARGE, packed
from slime_launch.plan import LaunchPlan
from slime_launch.types import Prompt, Sample
from tests.slime_launch.clusters import assert_as_planned, logical_nodes, quiet, running, where
from tests.slime_launch.plans import plan_for
from tests.slime_launch.stubs import stubbed

G = "rollout.topology.groups"
COUNTED = ("+experiment=qwen3_grpo", "rollout.topology.colocated=false", "cluster.gpus_per_node=8")


def several(*args: str, nodes: int = 2) -> LaunchPlan:
    """A plan for several machines, with stubs in its seats."""
    return stubbed(plan_for(*COUNTED, f"cluster.num_nodes={nodes}", "cluster.loopback=false", *args))


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with logical_nodes([8, 8, 8], tmp_path_factory.mktemp("cluster")):
        yield


@pytest.mark.usefixtures("nodes")
def test_colocated_processes_share_their_gpus(tmp_path: Path) -> None:
    plan = several(
        f"{G}.engine.colocated=true", f"{G}.engine.num_engines=4", f"{G}.engine.tp=2", "trainer.parallel.dp=8",
        "rollout.routing=router",
    )  # fmt: skip
    with running(plan, tmp_path) as (seats, fleet):
        seen = assert_as_planned(plan, seats, fleet)
    assert seen["engine-3"]["CUDA_VISIBLE_DEVICES"] == "6,7"
    assert [seen[f"trainer-{rank}"]["CUDA_VISIBLE_DEVICES"] for rank in range(8)] == [str(gpu) for gpu in range(8)]
    assert seen["rollout"]["CUDA_VISIBLE_DEVICES"] == "" == seen["router-actor"]["CUDA_VISIBLE_DEVICES"]


@pytest.mark.usefixtures("nodes")
def test_disaggregated_processes_share_none_and_nodes_are_in_order(tmp_path: Path) -> None:
    plan = several(
        "rollout/topology=pd", f"{G}.prefill.num_engines=4", f"{G}.prefill.tp=2", f"{G}.decode.num_engines=4",
        f"{G}.decode.tp=2", "trainer.parallel.dp=8", nodes=3,
    )  # fmt: skip
    assert plan.cluster.gpus == (8, 8, 8)
    with running(plan, tmp_path) as (seats, fleet):
        seen = assert_as_planned(plan, seats, fleet)
        assert [node.node for node in seats.nodes] == sorted(node.node for node in seats.nodes)
    held = [(here["node"], gpu) for here in seen.values() for gpu in here["CUDA_VISIBLE_DEVICES"].split(",") if gpu]
    assert len(held) == len(set(held)) == 24


@pytest.mark.usefixtures("nodes")
def test_mixed_with_placeholders_and_addresses_filled_in(tmp_path: Path) -> None:
    plan = several(
        f"{G}.engine.num_engines=2", f"{G}.engine.colocated=true", f"+{G}.reward.worker_type=regular",
        f"+{G}.reward.model=reward", "+rollout.topology.models.reward.update_weights=false",
        f"+{G}.reward.tp=2", f"+{G}.reward.num_engines=2",
        f"+{G}.held.worker_type=placeholder", f"+{G}.held.num_gpus=4", "trainer.parallel.dp=4",
    )  # fmt: skip
    assert [(each.node, each.gpus) for each in plan.placeholders], "the plan keeps GPUs free"
    with running(plan, tmp_path) as (seats, fleet):
        seen = assert_as_planned(plan, seats, fleet)
        assert not {each.name for each in plan.placeholders} & seen.keys()
        free = {(seats.nodes[p.node].node, seats.nodes[p.node].gpus[gpu]) for p in plan.placeholders for gpu in p.gpus}
    used = {(here["node"], gpu) for here in seen.values() for gpu in here["CUDA_VISIBLE_DEVICES"].split(",")}
    assert len(free) == 4 and not free & used
    assert seen["engine-0"]["args"]["host"] == "127.0.0.1", "the address of its node, in place of {node0}"
    assert "{node" not in str(seen)


@pytest.mark.usefixtures("nodes")
def test_an_engine_over_two_nodes(tmp_path: Path) -> None:
    config = Path(__file__).parents[2] / "components/models/qwen3/configs"
    plan = several(
        f"model.hf_config={wide_config(tmp_path, config)}", f"{G}.engine.tp=16", "trainer.parallel.dp=8", nodes=3
    )
    engines = [actor for actor in plan.actors if actor.group == "engine"]
    assert [actor.kind for actor in engines] == ["regular", "follower"]
    with running(plan, tmp_path) as (seats, fleet):
        seen = assert_as_planned(plan, seats, fleet)
    assert [seen[actor.name]["CUDA_VISIBLE_DEVICES"] for actor in engines] == ["0,1,2,3,4,5,6,7"] * 2
    assert seen[engines[0].name]["node"] != seen[engines[1].name]["node"]


def wide_config(folder: Path, shipped: Path) -> Path:
    """The tiny model's config.json with enough heads for 16 ranks."""
    import json

    values = json.loads((shipped / "tiny.json").read_text())
    values |= {"num_attention_heads": 16, "num_key_value_heads": 16, "intermediate_size": 256}
    file = folder / "config.json"
    file.write_text(json.dumps(values))
    return file


@pytest.mark.usefixtures("nodes")
def test_a_deficit_names_nodes_and_counts_before_anything_starts(tmp_path: Path) -> None:
    plan = several(f"{G}.engine.num_engines=24", "trainer.parallel.dp=8", nodes=4)
    with pytest.raises(PlacementError) as refused, reserve(plan, tmp_path, quiet(), 1.0):
        pytest.fail("there are no such seats")
    text = str(refused.value)
    assert "the plan takes 32 GPUs" in text and "on 4 nodes" in text
    assert "node 3: 8 GPUs" in text and "no machine for it" in text
    assert not (tmp_path / "logs").exists()


@pytest.mark.usefixtures("nodes")
def test_gpus_that_someone_else_has_are_missing_too(tmp_path: Path) -> None:
    plan = several(f"{G}.engine.num_engines=8", "trainer.parallel.dp=8", nodes=2)
    other = several(f"{G}.engine.num_engines=4", "trainer.parallel.dp=8", nodes=2)
    with (
        reserve(other, tmp_path, quiet(), 30.0),
        pytest.raises(PlacementError, match=r"127.0.0.1 free 4 GPUs.*missing: 4 GPUs \(node 1: 4 GPUs\)"),
        reserve(plan, tmp_path, quiet(), 1.0),
    ):
        pytest.fail("some are taken")


@pytest.mark.usefixtures("nodes")
def test_a_taken_port_and_a_hidden_folder_are_named(tmp_path: Path) -> None:
    import socket

    plan = several("trainer.parallel.dp=1")
    with (
        pytest.raises(PlacementError, match="does not see the run folder"),
        reserve(plan, tmp_path / "nowhere", quiet(), 30.0),
    ):
        pytest.fail("no such folder")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        here = replace(plan, cluster=replace(plan.cluster, base_port=held.getsockname()[1], num_ports=1))
        with pytest.raises(PlacementError, match="are taken"), reserve(here, tmp_path, quiet(), 30.0):
            pytest.fail("the port is taken")


@pytest.mark.usefixtures("nodes")
def test_the_first_failure_ends_the_wait_whoever_hangs(tmp_path: Path) -> None:
    """As ranks do whose peer has left a collective; they end at once, too, and are not asked to stop first."""
    rank = [f"trainer-{number}" for number in range(8)]
    with running(several("trainer.parallel.dp=8"), tmp_path) as (_, fleet):
        processes = {name: psutil.Process(here["pid"]) for name, here in where(fleet).items()}

        def act(*ranks: int, timeout_s: float = 600.0, **deeds: str) -> list[str]:
            names = [rank[number] for number in ranks]
            by_name = {f"trainer-{key[1:]}": deed for key, deed in deeds.items()}
            answers: list[str] = fleet.call(names, "act", by_name, what="acting", timeout_s=timeout_s)
            return answers

        assert act(2, 0, 1) == ["trainer-2", "trainer-0", "trainer-1"]
        with pytest.raises(LogprobGapError, match=r"^trainer-0, trainer-1, trainer-2, trainer-3 and 1 more: the gap$"):
            act(*range(6), **{f"_{number}": "the gap" for number in range(5)})
        with pytest.raises(ComponentError, match=r"^trainer-1: it does not fit; no answer yet from trainer-0$"):
            act(0, 1, 2, _0="hang", _1="it does not fit")
        with pytest.raises(
            ComponentError,
            match=r"^acting: trainer-3 died \(.*\); trainer-2: a peer is gone; no answer yet from trainer-4$",
        ):
            act(2, 3, 4, _2="a peer is gone", _3="die", _4="hang")
        with pytest.raises(DeadlineError, match=r"^acting: trainer-5, trainer-6: not done after 1 s"):
            act(5, 6, 7, timeout_s=1.0, _5="hang", _6="hang")
        fleet.stop(600.0)
        hung = [processes[rank[number]] for number in (0, 4, 5, 6)]
        assert psutil.wait_procs(hung, timeout=60)[1] == []
        assert all(process.is_running() for name, process in processes.items() if name in (rank[1], "engine-0"))


@pytest.mark.usefixtures("nodes")
def test_pixels_travel_to_the_nodes_where_they_are_read(tmp_path: Path) -> None:
    """Grids are read on both nodes, pixels on one; only that one gets a copy."""
    import ray
    from ray.experimental import get_object_locations

    media = {"pixel_values": np.ones((LARGE, 4), np.float32), "image_grid_thw": np.array([[1, 4, 4]])}
    plan = several("cluster.gpus_per_node=1", "trainer.parallel.dp=2", nodes=3)
    with running(plan, tmp_path) as (_, fleet):
        here = ray.get_runtime_context().get_node_id()
        away = {seen["node"]: name for name, seen in where(fleet).items() if seen["node"] != here}
        (reader_node, reader), (_, other), *_ = away.items()
        batch = packed([Sample(0, 0, Prompt([], ""), "", [1], media=media)])
        pixels = batch[0].media._entries["pixel_values"].ref  # type: ignore[attr-defined]
        sent = ray.put(batch)

        def nodes_with_pixels() -> set[str]:
            return set(get_object_locations([pixels])[pixels]["node_ids"])

        for name in (reader, other):
            read = fleet.call([name], "read", sent, ["image_grid_thw"], what="reading", timeout_s=60.0)
            assert read == [[9.0]]
        assert nodes_with_pixels() == {here}
        [[total]] = fleet.call([reader], "read", sent, ["pixel_values"], what="reading", timeout_s=60.0)
        assert total == 4.0 * LARGE
        until = time.monotonic() + 30
        while nodes_with_pixels() == {here} and time.monotonic() < until:
            time.sleep(0.1)  # the owner hears of copies a little later
        assert nodes_with_pixels() == {here, reader_node}


@pytest.mark.usefixtures("nodes")
def test_kept_servers_go_on_and_all_others_start_anew(tmp_path: Path) -> None:
    first = several("rollout/topology=multi_model", "trainer.parallel.dp=2")
    second = several("rollout/topology=multi_model", "trainer.parallel.dp=2", "trainer.optim.lr=1e-6",
                     f"+{G}.reward.overrides.max_running_requests=7")  # fmt: skip
    with running(first, tmp_path) as (seats, fleet):
        before = where(fleet)
        assert seats.fits(second)
        kept = fleet.hand_over(second)
        after_fleet = Fleet(second, seats, tmp_path, quiet(), 60.0)
        after_fleet.start(kept)
        after = where(after_fleet)
        after_fleet.stop()
    same = {name for name in before if before[name]["pid"] == after[name]["pid"]}
    assert same == {"engine-0", "reference-0", "router-reference"}
    assert after["trainer-0"]["needs"]["weight_sink"] == ["engine-0"], "what a kept server provided goes on"
    assert after["reward-0"]["args"]["server_args"]["max_running_requests"] == 7


@pytest.mark.usefixtures("nodes")
def test_a_server_that_broke_is_not_kept(tmp_path: Path) -> None:
    plan = several("rollout/topology=multi_model", "trainer.parallel.dp=2")
    with running(plan, tmp_path) as (_, fleet):
        fleet.call(["reference-0"], "break_down", what="breaking", timeout_s=30.0)
        with pytest.raises(ComponentError, match="reference-0 broke"):
            fleet.check_servers()
        kept = fleet.hand_over(plan)
        assert set(kept) == {"engine-0", "reward-0", "router-reward"}
        rest = Fleet(plan, fleet._seats, tmp_path, quiet(), 60.0)
        rest.start(kept)
        rest.check_servers()
        rest.stop()
