"""Which servers serve the next plan as they are."""

from dataclasses import replace
from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from slime_launch.plan import Actor, LaunchPlan
from slime_launch.reuse import SERVERS, reusable
from tests.slime_launch.plans import plan_for


@cache
def omni(*args: str) -> LaunchPlan:
    return plan_for("+experiment=glm_omni_grpo", "rollout/topology=epd_pd", "cluster.gpus_per_node=8", *args)


@cache
def wide(*args: str) -> LaunchPlan:
    """An engine over two nodes."""
    plan = plan_for("+experiment=qwen3_grpo")
    [engine] = plan.of_kind("regular")
    start = {"server_args": engine.args["server_args"] | {"dist_init_addr": "{node0}:2", "nnodes": 2}}
    first = replace(engine, args=engine.args | start)
    second = replace(first, name="engine-0-node1", kind="follower", provides=(), node=1)
    return replace(plan, actors=(*(a for a in plan.actors if a is not engine), first, second))


def servers(plan: LaunchPlan) -> set[str]:
    return {actor.name for actor in plan.actors if actor.kind in SERVERS}


def changed(plan: LaunchPlan, name: str) -> LaunchPlan:
    def change(actor: Actor) -> Actor:
        return replace(actor, args=actor.args | {"changed": True}) if actor.name == name else actor

    return replace(plan, actors=tuple(map(change, plan.actors)))


def below(plan: LaunchPlan, name: str) -> set[str]:
    """A server and all servers that were told, directly or not, where it is."""
    found = {name}
    for actor in plan.actors * 4:
        given_by = {other.name for other in plan.actors for need in actor.needs if need in other.provides}
        if actor.kind in SERVERS and given_by & found:
            found.add(actor.name)
    return found


def test_the_same_plan_keeps_all_servers_and_nothing_else() -> None:
    assert reusable(omni(), omni(), servers(omni())) == servers(omni())


def test_what_only_the_trainer_sees_changes_no_server() -> None:
    assert reusable(omni(), omni("trainer.optim.lr=1e-7"), servers(omni())) == servers(omni())


def test_another_checkpoint_keeps_none() -> None:
    assert reusable(omni(), changed(omni(), "checkpoint"), servers(omni())) == set()


@given(st.sampled_from(sorted(servers(omni()))))
def test_whoever_was_told_about_a_changed_server_goes_with_it(name: str) -> None:
    kept = reusable(omni(), changed(omni(), name), servers(omni()))
    assert kept == servers(omni()) - below(omni(), name)


@given(st.sets(st.sampled_from(sorted(servers(omni())))))
def test_whoever_was_told_about_a_dead_server_goes_with_it(dead: set[str]) -> None:
    kept = reusable(omni(), omni(), servers(omni()) - dead)
    gone = {name for each in dead for name in below(omni(), each)}
    assert kept == servers(omni()) - gone


def test_one_more_provider_restarts_who_is_told_of_it() -> None:
    [decode] = omni().of_kind("decode")
    more = replace(omni(), actors=(*omni().actors, replace(decode, name="decode-1")))
    assert reusable(omni(), more, servers(omni())) == servers(omni()) - {"router-actor"}


def test_nodes_of_one_engine_go_together() -> None:
    assert reusable(wide(), wide(), servers(wide())) == servers(wide())
    kept = reusable(wide(), wide(), servers(wide()) - {"engine-0-node1"})
    assert not kept & {"engine-0", "engine-0-node1", "router-actor"}
