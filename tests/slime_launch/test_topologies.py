"""Every rollout topology as a plan: who needs what, who starts first, who sits where, who gets weights."""

from pathlib import Path

import pytest

from slime_launch.plan import Actor, Edge, LaunchPlan
from slime_launch.views import differences, mermaid
from tests.slime_launch.plans import plan_for

QWEN, GLM = "+experiment=qwen3_grpo", "+experiment=glm_omni_grpo"
GPUS = ("cluster.gpus_per_node=8",)
G = "rollout.topology.groups"
TOPOLOGIES = sorted(file.stem for file in (Path(__file__).parents[2] / "conf/rollout/topology").glob("*.yaml"))
COUNTED = ("rollout.topology.colocated=false",)


def group(plan: LaunchPlan, name: str) -> list[Actor]:
    return plan.groups()[name]


def edges(plan: LaunchPlan) -> set[tuple[str, str, str]]:
    return {(edge.src, edge.dst, edge.name) for edge in plan.edges}


def replace_topology(name: str, *more: str, base: str = QWEN) -> LaunchPlan:
    """An experiment with another topology."""
    return plan_for(base, f"rollout/topology={name}", *more)


def test_all_of_them_are_here() -> None:
    wanted = {"single", "dp", "epd", "pd", "epd_pd", "multi_model", "placeholder", "external"}
    assert wanted <= set(TOPOLOGIES)


def test_dp_is_several_engines_that_the_rollout_or_a_router_picks_from() -> None:
    plan = replace_topology("dp")
    assert [actor.name for actor in group(plan, "engine")] == ["engine-0", "engine-1"]
    assert plan.of_kind("router") == () and ("engine", "rollout", "actor/engine_url") in edges(plan)
    assert plan.of_kind("rollout")[0].args["routing"] == {"by": "direct", "affinity": False}
    routed = replace_topology("dp", "rollout.routing=router", "rollout.router_args.policy=consistent_hashing")
    assert {("engine", "router-actor", "actor/engine_url"), ("router-actor", "rollout", "router_url")} <= edges(routed)
    assert routed.of_kind("rollout")[0].args["routing"] == {"by": "router", "affinity": True}


def test_dp_inside_one_engine_is_synced_from_disk() -> None:
    plan = plan_for(QWEN, f"{G}.engine.dp=2")
    [engine] = group(plan, "engine")
    assert engine.args["server_args"]["dp_size"] == 2
    assert engine.args["weight_sync"]["via"] == "disk"
    assert group(plan_for(QWEN), "engine")[0].args["weight_sync"]["via"] == "broadcast"


def test_pd_has_two_worker_types_and_no_regular_one() -> None:
    plan = replace_topology("pd", *GPUS)
    prefill, decode = group(plan, "prefill")[0], group(plan, "decode")[0]
    assert prefill.args["server_args"]["disaggregation_mode"] == "prefill"
    assert decode.args["server_args"]["disaggregation_mode"] == "decode"
    assert prefill.args["server_args"]["load_balance_method"] == "follow_bootstrap_room"
    assert isinstance(prefill.args["server_args"]["disaggregation_bootstrap_port"], int)
    assert {("prefill", "router-actor", "actor/prefill_url"), ("decode", "router-actor", "actor/decode_url")} <= edges(
        plan
    )
    assert "weight_sink" in prefill.provides and "weight_sink" in decode.provides
    assert plan.of_kind("rollout")[0].args["routing"]["by"] == "router"


def test_encoders_reach_prefill_and_never_decode() -> None:
    plan = replace_topology("epd_pd", *GPUS, base=GLM)
    assert ("encoder", "prefill", "actor/encoder_url") in edges(plan)
    assert not any(dst == "decode" and name.endswith("encoder_url") for _, dst, name in edges(plan))
    encoder, prefill, decode = (group(plan, name)[0] for name in ("encoder", "prefill", "decode"))
    assert prefill.args["server_args"]["language_only"] is True
    assert "language_only" not in decode.args["server_args"]
    assert encoder.phase < prefill.phase
    assert "weight_sink" not in encoder.provides


def test_encoders_reach_every_regular_engine_and_each_opens_a_port_of_its_own() -> None:
    plan = plan_for(GLM, f"{G}.engine.num_engines=3", f"{G}.encoder.num_engines=2")
    engines = group(plan, "engine")
    ports = {engine.args["server_args"]["encoder_bootstrap_port"] for engine in engines}
    assert len(ports) == 3
    assert ports.isdisjoint(actor.args["port"] for actor in plan.actors if "port" in actor.args)
    assert all("actor/encoder_url" in engine.needs for engine in engines)
    assert {actor.phase for actor in group(plan, "encoder")} == {engines[0].phase - 1}


def test_a_users_override_of_the_encoder_edge_wins() -> None:
    more = f"++{G}.plain={{worker_type: regular, overrides: {{language_only: false}}}}"
    plan = plan_for(GLM, more)
    assert "actor/encoder_url" in group(plan, "engine")[0].needs
    assert "actor/encoder_url" not in group(plan, "plain")[0].needs
    assert "encoder_bootstrap_port" not in group(plan, "plain")[0].args["server_args"]


def test_each_model_has_its_router_and_only_the_actor_gets_weights() -> None:
    plan = replace_topology("multi_model")
    assert {actor.args["model"] for actor in plan.of_kind("router")} == {"reference", "reward"}
    plan = replace_topology("multi_model", "rollout.routing=router")
    assert {actor.args["model"] for actor in plan.of_kind("router")} == {"actor", "reference", "reward"}
    assert {("engine", "router-actor", "actor/engine_url"), ("reward", "router-reward", "reward/engine_url")} <= edges(
        plan
    )
    assert {edge for edge in plan.edges if edge.name == "weight_sink"} == {
        Edge(src="engine", dst="trainer", name="weight_sink")
    }
    assert {dst for _, dst, name in edges(plan) if name == "router_url"} == {"rollout"}


def test_several_models_may_each_have_encoders() -> None:
    models = "++rollout.topology.models.reward.update_weights=false"
    groups = (
        f"++{G}.eyes={{worker_type: encoder, model: reward}}",
        f"++{G}.judge={{worker_type: regular, model: reward}}",
    )
    plan = plan_for(GLM, models, *groups)
    assert {("encoder", "engine", "actor/encoder_url"), ("eyes", "judge", "reward/encoder_url")} <= edges(plan)
    assert ("eyes", "engine", "actor/encoder_url") not in edges(plan)


def test_placeholders_take_gpus_and_start_nothing() -> None:
    plan = replace_topology("placeholder", *GPUS, *COUNTED, f"{G}.reserved.num_gpus=3")
    assert "reserved" not in plan.groups()
    assert [(p.name, p.node, p.gpus) for p in plan.placeholders] == [
        ("reserved-0", 0, (2,)),
        ("reserved-1", 0, (3,)),
        ("reserved-2", 0, (4,)),
    ]
    assert plan.cluster.gpus == (5,)


def test_external_engines_are_asked_and_not_started() -> None:
    urls = f"{G}.engine.urls=[http://10.0.0.7:30000,http://10.0.0.8:30000]"
    plan = replace_topology("external", urls, f"{G}.engine.admin_key_file=/k", f"{G}.engine.tp=2")
    engines = plan.of_kind("external")
    assert [engine.args["url"] for engine in engines] == ["http://10.0.0.7:30000", "http://10.0.0.8:30000"]
    assert engines[0].args["expected"] == {"tp_size": 2, "pp_size": 1, "dp_size": 1}
    assert ("engine", "rollout", "actor/engine_url") in edges(plan)


def test_an_engine_larger_than_a_node_is_a_process_on_each() -> None:
    plan = plan_for(
        QWEN, "model.hf_config=qwen3-32b", "cluster.gpus_per_node=4", "cluster.num_nodes=4", f"{G}.engine.tp=8",
        *COUNTED, "rollout.num_prompts=8", "trainer.parallel.tp=4", "cluster.gpu_memory_gb=9999",
    )  # fmt: skip
    first, second = group(plan, "engine")
    assert (first.node, first.gpus, second.node, second.gpus) == (1, (0, 1, 2, 3), 2, (0, 1, 2, 3))
    assert (first.kind, second.kind, second.name) == ("regular", "follower", "engine-0-node1")
    assert [actor.args["server_args"]["node_rank"] for actor in (first, second)] == [0, 1]
    assert first.args["server_args"]["dist_init_addr"] == second.args["server_args"]["dist_init_addr"]
    assert (first.provides, second.provides) == (("actor/engine_url", "weight_sink"), ())
    assert first.phase == second.phase


def test_colocated_disaggregated_and_mixed() -> None:
    parallel = ("trainer.parallel.dp=4", *GPUS)
    together = plan_for(QWEN, *parallel, f"{G}.engine.num_engines=4")
    assert together.cluster.gpus == (4,)
    assert [actor.resources.gpu for actor in together.actors if actor.gpus] == [0.5] * 8
    apart = plan_for(QWEN, *parallel, f"{G}.engine.num_engines=4", *COUNTED)
    assert apart.cluster.gpus == (8,)
    assert {actor.resources.gpu for actor in apart.actors if actor.gpus} == {1.0}
    mixed = plan_for(QWEN, *parallel, f"++{G}.more={{num_engines: 2, colocated: false}}")
    assert [actor.gpus for actor in group(mixed, "engine")] == [(0,)]
    assert [actor.gpus for actor in group(mixed, "more")] == [(4,), (5,)]


def test_shares_of_a_gpu() -> None:
    plan = plan_for(GLM, *GPUS, f"{G}.encoder.gpus_per_engine=0.25", f"{G}.encoder.num_engines=5",
                    f"{G}.encoder.colocated=false")  # fmt: skip
    assert [actor.gpus for actor in group(plan, "encoder")] == [(1,)] * 4 + [(2,)]
    assert [actor.resources.gpu for actor in group(plan, "encoder")] == [0.25] * 4 + [1.0]


def test_other_nodes_have_addresses_that_the_launcher_fills_in() -> None:
    plan = plan_for("+experiment=qwen3_32b")
    assert {actor.args["host"] for actor in group(plan, "engine")} == {"{node2}"}
    assert group(plan, "trainer")[0].args["rendezvous"].startswith("tcp://{node0}:")


@pytest.mark.parametrize("name", [name for name in TOPOLOGIES if name not in ("pd", "epd_pd", "external")])
def test_ports_are_used_once_and_lie_in_the_block(name: str) -> None:
    plan = replace_topology(name, base=GLM if name.startswith("epd") else QWEN)
    ports = [port for actor in plan.actors for port in ports_of(actor.args)] + [plan.cluster.ray_port]
    assert len(set(ports)) == len(ports)
    block = range(plan.cluster.base_port, plan.cluster.base_port + plan.cluster.num_ports)
    assert set(ports) <= set(block)


def ports_of(args: object) -> list[int]:
    if not isinstance(args, dict):
        return []
    own = [value for key, value in args.items() if key.endswith("port") and isinstance(value, int)]
    return own + [port for value in args.values() for port in ports_of(value)]


def test_the_graph_as_mermaid() -> None:
    text = mermaid(plan_for(GLM))
    assert text.startswith("flowchart LR\n")
    assert "g_encoder -- actor/encoder_url --> g_engine" in text
    assert 'g_engine["engine-0<br/>regular, node 0"]' in text


def test_what_differs_between_two_plans() -> None:
    old, new = plan_for(QWEN), plan_for(QWEN, "seed=7", f"{G}.engine.num_engines=2")
    lines = differences(old, new)
    assert differences(old, old) == []
    assert "actors.trainer-0.args.seed: 1 -> 7" in lines
    assert any(line.startswith("actors.engine-1.kind: (absent) -> regular") for line in lines)


OF_THEIR_OWN = """
# two pools of engines with encoders of their own kind, a judge without, GPUs for something else
models:
  judge: {path: null, update_weights: false}
groups:
  eyes: {worker_type: encoder, num_engines: 4, gpus_per_engine: 0.5}
  quick: {worker_type: regular, num_engines: 2}
  deep: {worker_type: regular, tp: 2, overrides: {context_length: 256}}
  judge: {worker_type: regular, model: judge, overrides: {language_only: false}}
  kept: {worker_type: placeholder, num_gpus: 2}
"""


def test_a_new_topology_is_yaml_alone(tmp_path: Path) -> None:
    file = tmp_path / "rollout" / "topology" / "theirs.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(OF_THEIR_OWN)
    args = (GLM, "rollout/topology=theirs", "cluster.gpus_per_node=8", "cluster.num_nodes=2")
    plan = plan_for(*args, "rollout.topology.colocated=false", config_dir=str(tmp_path))
    assert {name: len(actors) for name, actors in plan.groups().items() if name in OF_THEIR_OWN} == {
        "eyes": 4, "quick": 2, "deep": 1, "judge": 1,
    }  # fmt: skip
    encoded = {dst for _, dst, name in edges(plan) if name == "actor/encoder_url"}
    assert encoded == {"quick", "deep"}
    assert {edge.src for edge in plan.edges if edge.name == "weight_sink"} == {"quick", "deep"}
    assert group(plan, "deep")[0].args["server_args"]["context_length"] == 256
    assert len(plan.placeholders) == 2
    taken = [(actor.node, gpu) for actor in plan.actors for gpu in actor.gpus if actor.group != "eyes"]
    assert len(set(taken)) == len(taken)
