"""What nodes need against what machines offer, and the order in which machines are taken."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from slime_launch.cluster.needs import Need, Offer, deficit, even_out, in_order, missing, node_needs
from slime_launch.cluster.probe import fault_of, in_index_order
from slime_launch.network import interface_of
from slime_launch.plan import Placeholder
from tests.slime_launch.plans import plan_for

needs = st.lists(st.builds(Need, st.integers(0, 8), st.integers(0, 16)), min_size=1, max_size=5)


def offers(*sizes: tuple[int, int]) -> list[Offer]:
    return [Offer(f"id{index}", f"10.0.0.{index + 1}", gpus, cpus) for index, (gpus, cpus) in enumerate(sizes)]


def test_needs_are_gpus_of_the_plan_and_cpus_of_its_actors() -> None:
    plan = plan_for(
        "+experiment=qwen3_grpo", "rollout.topology.colocated=false", "cluster.gpus_per_node=8",
        "cluster.num_nodes=2", "trainer.parallel.dp=8",
    )  # fmt: skip
    assert [need.gpus for need in node_needs(plan)] == [8, 1] == list(plan.cluster.gpus)
    assert sum(need.cpus for need in node_needs(plan)) == sum(actor.resources.cpu for actor in plan.actors)
    reserved = replace(
        plan, cluster=replace(plan.cluster, gpus=(8, 4)), placeholders=(Placeholder(name="r", node=1, gpus=(1, 2, 3)),)
    )
    assert node_needs(reserved)[1].gpus == 4


def test_a_deficit_in_words() -> None:
    text = deficit([Need(8, 10), Need(8, 8), Need(2, 1)], offers((8, 16), (4, 16)))
    assert text == (
        "the plan takes 18 GPUs and 19 CPUs on 3 nodes; 10.0.0.1 has 8 GPUs and 16 CPUs, 10.0.0.2 has 4 GPUs and 16 "
        "CPUs; missing: 6 GPUs and 1 CPUs (node 1: 4 GPUs, node 2: 2 GPUs and 1 CPUs, no machine for it)"
    )
    assert deficit([Need(8, 1)], []) == (
        "the plan takes 8 GPUs and 1 CPUs on 1 node; no machine is there; "
        "missing: 8 GPUs and 1 CPUs (node 0: 8 GPUs and 1 CPUs, no machine for it)"
    )


@given(needs)
def test_nothing_is_missing_on_machines_of_that_size(wanted: list[Need]) -> None:
    assert not missing(wanted, offers(*((need.gpus, need.cpus) for need in wanted)))


@given(needs, st.integers(1, 4))
def test_what_is_taken_away_is_missing(wanted: list[Need], fewer: int) -> None:
    wanted = [Need(need.gpus + fewer, need.cpus) for need in wanted]
    lacking = missing(wanted, offers(*((need.gpus - fewer, need.cpus) for need in wanted)))
    assert sum(lack.gpus for lack, _ in lacking.values()) == fewer * len(wanted)


@given(needs, st.permutations(range(5)))
def test_nodes_of_one_size_follow_addresses(wanted: list[Need], shuffle: list[int]) -> None:
    # 10.0.0.9 comes before 10.0.0.10: as numbers, not as text
    found = [Offer(f"id{k}", f"10.0.0.{8 + shuffle[k]}", 0, 0) for k in range(len(wanted))]
    bundles = in_order(wanted, found)
    assert sorted(bundles) == list(range(len(wanted)))
    assert all(wanted[bundle] == need for bundle, need in zip(bundles, wanted, strict=True))
    for first in range(len(wanted)):
        for later in range(first + 1, len(wanted)):
            if wanted[first] == wanted[later]:
                assert shuffle[bundles[first]] < shuffle[bundles[later]]


def test_cpus_are_evened_out_only_where_machines_have_them() -> None:
    wanted = [Need(8, 10), Need(8, 8)]
    assert even_out(wanted, offers((8, 10), (8, 10))) == (Need(8, 10), Need(8, 10))
    assert even_out(wanted, offers((8, 10), (8, 8))) == tuple(wanted)


def test_gpus_are_counted_by_index() -> None:
    assert in_index_order([10, 2, 0]) == ("0", "2", "10")
    assert in_index_order(["MIG-b", "3", "MIG-a"]) == ("3", "MIG-a", "MIG-b")


def test_public_addresses_and_ipv6_are_refused() -> None:
    assert "public" in str(fault_of("8.8.8.8", "/tmp", []))
    assert "IPv4" in str(fault_of("fd00::1", "/tmp", []))
    assert fault_of("10.1.2.3", "/tmp", []) is None


def test_the_interface_of_an_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.200") is None
