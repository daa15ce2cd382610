"""Seats as a pure function: no GPU twice but where it is shared on purpose, no engine across nodes without need."""

from collections import Counter
from math import ceil

from hypothesis import assume, given
from hypothesis import strategies as st

from slime_launch.placement import Placement, Seat, gpus_per_engine, group_problems, num_engines, place, world_size
from slime_launch.schema import Config, EngineGroup, TrainerConfig
from slime_launch.schema.rollout import RolloutConfig, TopologyConfig
from slime_launch.schema.trainer import ParallelConfig
from tests.slime_launch.plans import plan_for

COUNTED = ("+experiment=qwen3_grpo", "rollout.topology.colocated=false", "cluster.gpus_per_node=8")
G = "rollout.topology.groups"


def config(world: int, groups: dict[str, EngineGroup]) -> Config:
    rollout = RolloutConfig(topology=TopologyConfig(groups=groups))
    return Config(trainer=TrainerConfig(parallel=ParallelConfig(dp=world)), rollout=rollout)


@st.composite
def groups(draw: st.DrawFn, per_node: int, colocated: st.SearchStrategy[bool]) -> EngineGroup:
    worker_type = draw(st.sampled_from(["regular", "regular", "placeholder"]))
    size = draw(st.sampled_from([1, 2, 4, 8, 16]))
    share = draw(st.sampled_from([None, None, 0.5, 0.25])) if size == 1 else None
    if worker_type == "placeholder":
        return EngineGroup(worker_type=worker_type, num_gpus=draw(st.integers(1, 9)), colocated=False)
    made = EngineGroup(
        worker_type=worker_type, tp=size, num_engines=draw(st.integers(1, 5)), gpus_per_engine=share,
        colocated=draw(colocated),
    )  # fmt: skip
    assume(not list(group_problems("g", made, per_node)))
    return made


def placements(colocated: st.SearchStrategy[bool]) -> st.SearchStrategy[tuple[Config, int, Placement]]:
    def made(per_node: int) -> st.SearchStrategy[tuple[Config, int, Placement]]:
        named = st.dictionaries(st.sampled_from("abcd"), groups(per_node, colocated), max_size=4)
        configs = st.builds(config, st.integers(1, 20), named)
        return configs.map(lambda c: (c, per_node, place(c, per_node)))

    return st.sampled_from([1, 2, 4, 8]).flatmap(made)


def gpus(seats: tuple[Seat, ...]) -> list[tuple[int, int]]:
    return [(seat.node, gpu) for seat in seats for gpu in seat.gpus]


@given(placements(st.just(False)))
def test_without_colocation_whole_gpus_have_one_tenant(made: tuple[Config, int, Placement]) -> None:
    given_config, _, placement = made
    held = Counter(gpus(placement.trainer))
    for name, group in given_config.rollout.topology.groups.items():
        size = gpus_per_engine(group)
        inside = Counter(gpu for engine in placement.engines[name] for gpu in gpus(engine))
        assert not inside.keys() & held.keys(), "groups share nothing with each other or with the trainer"
        assert max(inside.values()) <= (1 if size >= 1 else round(1 / size))
        held += inside
    assert held == placement.tenants


@given(placements(st.booleans()))
def test_counts_and_bounds(made: tuple[Config, int, Placement]) -> None:
    given_config, per_node, placement = made
    assert len(set(placement.trainer)) == len(placement.trainer) == world_size(given_config)
    assert all(len(seat.gpus) == 1 for seat in placement.trainer)
    for name, group in given_config.rollout.topology.groups.items():
        assert len(placement.engines[name]) == num_engines(group)
        for engine in placement.engines[name]:
            assert len(gpus(engine)) == max(1, round(gpus_per_engine(group)))
    for seat in placement.seats():
        assert all(0 <= gpu < per_node for gpu in seat.gpus)
        assert list(seat.gpus) == list(range(seat.gpus[0], seat.gpus[-1] + 1))
    by_node = placement.gpus_by_node()
    assert list(by_node) == list(range(len(by_node))), "no node is left out between others"
    assert all(count <= per_node for count in by_node.values())


@given(placements(st.just(False)))
def test_an_engine_spans_no_more_nodes_than_it_must(made: tuple[Config, int, Placement]) -> None:
    _, per_node, placement = made
    for engines in placement.engines.values():
        for engine in engines:
            assert len({seat.node for seat in engine}) == len(engine) == ceil(len(gpus(engine)) / per_node)


@given(placements(st.just(True)))
def test_colocated_engines_stay_on_the_trainers_gpus(made: tuple[Config, int, Placement]) -> None:
    given_config, _, placement = made
    world = world_size(given_config)
    for name, group in given_config.rollout.topology.groups.items():
        if group.colocated and gpus_per_engine(group) <= world:
            for engine in placement.engines[name]:
                assert set(gpus(engine)) <= set(gpus(placement.trainer))


def test_on_cpu_everything_sits_on_node_0_without_gpus() -> None:
    placement = place(config(3, {"engine": EngineGroup(worker_type="regular", num_engines=2)}), 0)
    assert set(placement.seats()) == {Seat()}
    assert placement.gpus_by_node() == {0: 0}


def test_the_plan_holds_the_seats() -> None:
    plan = plan_for(*COUNTED, f"{G}.engine.num_engines=6", f"{G}.engine.tp=2", "trainer.parallel.dp=4",
                    "cluster.num_nodes=2")  # fmt: skip
    assert [(actor.node, actor.gpus) for actor in plan.of_kind("trainer")] == [(0, (gpu,)) for gpu in range(4)]
    assert [(actor.node, actor.gpus) for actor in plan.of_kind("regular")] == [
        (0, (4, 5)), (0, (6, 7)), (1, (0, 1)), (1, (2, 3)), (1, (4, 5)), (1, (6, 7)),
    ]  # fmt: skip
    assert plan.cluster.gpus == (8, 8)
