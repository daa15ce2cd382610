"""Plans as data: the graph, its order, and how cheap it is to make."""

import json
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_launch.cli import command
from slime_launch.plan import Actor, Edge, LaunchPlan, Resources, assign_phases, draw_edges, read_plan
from tests.slime_launch.commands import slime_launch

EXPERIMENTS = sorted(file.stem for file in (Path(__file__).parents[2] / "conf" / "experiment").glob("*.yaml"))


def plan_of(*args: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> LaunchPlan:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert command([*args, "mode=plan", f"hydra.run.dir={folder / 'run'}"]) == 0
    return read_plan(folder / "run" / "plan.json")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_plans(experiment: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan = plan_of(f"+experiment={experiment}", monkeypatch=monkeypatch, folder=tmp_path)
    phase = {actor.group: actor.phase for actor in plan.actors}
    assert all(phase[edge.src] < phase[edge.dst] for edge in plan.edges)
    ports = [(actor.args["host"], actor.args["port"]) for actor in plan.actors if "port" in actor.args]
    assert len(set(ports)) == len(ports)


def test_the_omni_graph(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan = plan_of("+experiment=glm_omni_grpo", monkeypatch=monkeypatch, folder=tmp_path)
    assert [(a.name, a.kind, a.phase) for a in plan.actors] == [
        ("checkpoint", "checkpoint", 0),
        ("encoder-0", "encoder", 1),
        ("engine-0", "regular", 2),
        ("trainer-0", "trainer", 3),
        ("rollout", "rollout", 3),
    ]
    edges = {(edge.src, edge.dst, edge.name) for edge in plan.edges}
    assert ("encoder", "engine", "actor/encoder_url") in edges
    assert ("engine", "trainer", "weight_sink") in edges
    assert not any(src == "encoder" and name == "weight_sink" for src, _, name in edges)
    engine = next(actor for actor in plan.actors if actor.name == "engine-0")
    assert engine.args["server_args"]["language_only"] is True
    media = [10, 11, 12, 13, 14, 15]
    assert engine.args["env"]["SLIME_LAUNCH_BANNED_TOKENS"] == ",".join(map(str, media))
    assert plan.of_kind("trainer")[0].args["banned_tokens"] == media


def test_overrides_reach_their_actor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan = plan_of(
        "+experiment=qwen3_grpo", "rollout.topology.groups.engine.num_engines=3", "trainer.parallel.tp=2",
        "+rollout.topology.groups.engine.overrides.max_total_tokens=123", "trainer.optim.lr=5e-7", "seed=9",
        monkeypatch=monkeypatch, folder=tmp_path,
    )  # fmt: skip
    assert [a.args["server_args"]["max_total_tokens"] for a in plan.of_kind("regular")] == [123] * 3
    assert [(a.args["rank"], a.args["world_size"], a.args["tp"]) for a in plan.of_kind("trainer")] == [
        (0, 2, 2),
        (1, 2, 2),
    ]
    assert plan.of_kind("trainer")[0].args["optim"]["lr"] == 5e-7
    assert plan.of_kind("rollout")[0].args["seed"] == 9
    assert [edge for edge in plan.edges if edge.name == "weight_sink"] == [
        Edge(src="engine", dst="trainer", name="weight_sink")
    ]
    assert [actor.name for actor in plan.actors if "weight_sink" in actor.needs] == ["trainer-0"]


def test_fixed_ports_give_the_same_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    args = ("+experiment=glm_omni_grpo", "cluster.base_port=23456")
    first = plan_of(*args, monkeypatch=monkeypatch, folder=tmp_path)
    assert first == plan_of(*args, monkeypatch=monkeypatch, folder=tmp_path)
    assert msgspec.json.decode(first.to_json(), type=LaunchPlan) == first


def test_json_goes_to_stdout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of("+experiment=qwen3_grpo", "plan.format=json", monkeypatch=monkeypatch, folder=tmp_path)
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(plan.to_json())
    assert printed["schema_version"] == 2
    wanted = {"name", "kind", "group", "component", "phase", "node", "gpus", "resources", "needs", "provides", "args"}
    wanted |= {"memory_mb"}
    assert all(set(actor) == wanted for actor in printed["actors"])
    assert all(set(edge) == {"src", "dst", "name"} for edge in printed["edges"])


def test_plan_needs_a_config_and_no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    shape = {"hidden_size": 96, "intermediate_size": 192, "num_attention_heads": 6, "num_key_value_heads": 3}
    shape |= {"num_hidden_layers": 4, "vocab_size": 112, "max_position_embeddings": 512}
    config.write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"], **shape}))
    args = ("+experiment=qwen3_grpo", f"model.hf_config={config}", "trainer.parallel.tp=3", "trainer.parallel.pp=2")
    assert len(plan_of(*args, monkeypatch=monkeypatch, folder=tmp_path).of_kind("trainer")) == 6


def test_planning_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from slime_launch.cli import command\n"
        f"assert command(['+experiment=glm_omni_grpo', 'mode=plan', 'hydra.run.dir={tmp_path}/run']) == 0\n"
        "heavy = {'torch', 'ray', 'sglang', 'transformers', 'megatron', 'sklearn', 'numpy.random'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy - {'numpy.random'} else 0)"
    )
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_secrets_stay_unresolved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    from slime_launch.compose import plain_config

    monkeypatch.setenv("SENTINEL", "s3cret")
    config = OmegaConf.create({"a": "${oc.env:SENTINEL}", "b": "x${a}", "c": 1, "d": "${c}"})
    assert plain_config(config, keep_env=True) == {
        "a": "${oc.env:SENTINEL}",
        "b": "x${oc.env:SENTINEL}",
        "c": 1,
        "d": 1,
    }
    assert plain_config(config, keep_env=False)["b"] == "xs3cret"


def test_config_dir_holds_a_users_experiment(tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\ndefaults:\n  - qwen3_grpo\nname: mine\nseed: 5\n")
    ran = slime_launch(
        "+experiment=mine", "mode=plan", "--config-dir", str(folder.parent), "hydra.run.dir=run", cwd=tmp_path
    )
    assert ran.code == 0, ran.err
    assert read_plan(tmp_path / "run" / "plan.json").name == "mine"


def linked(links: dict[int, set[int]]) -> list[Actor]:
    return [
        Actor(
            name=f"{node}-0", group=str(node), kind="k", component="c", resources=Resources(cpu=1), args={},
            provides=(f"p{node}",), needs=tuple(f"p{other}" for other in sorted(below)),
        )
        for node, below in links.items()
    ]  # fmt: skip


@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(*(st.sets(st.integers(0, i - 1)) if i else st.just(set()) for i in range(n)))
    )
)
def test_phases_are_the_longest_path(links: tuple[set[int], ...]) -> None:
    made = linked(dict(enumerate(links)))
    phases = assign_phases([actor.group for actor in made], draw_edges(made))
    for node, below in enumerate(links):
        assert phases[str(node)] == max((phases[str(other)] + 1 for other in below), default=0)


def test_a_cycle_is_an_error() -> None:
    made = linked({0: {1}, 1: {0}})
    with pytest.raises(ValueError, match="cycle"):
        assign_phases([actor.group for actor in made], draw_edges(made))
