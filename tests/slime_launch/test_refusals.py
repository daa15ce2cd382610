"""What is wrong is refused before anything starts: exit code 2, a line for each problem, nothing else."""

import json
from pathlib import Path

import pytest

from slime_launch.cli import command
from tests.slime_launch.commands import check_refusal, slime_launch

GLM, QWEN = "+experiment=glm_omni_grpo", "+experiment=qwen3_grpo"

BAD = [
    # unknown names
    (["+experiment=glm_omni_grp"], "error: experiment=glm_omni_grp: no such option; did you mean glm_omni_grpo?"),
    ([GLM, "rollout/topolgy=epd"], "error: rollout/topolgy=epd: no such group; did you mean rollout/topology?"),
    ([GLM, "rollout/topology=ep"], "error: rollout/topology=ep: no such option; did you mean epd?"),
    ([GLM, "trainer.num_step=2"], "error: trainer.num_step=2: unknown key; did you mean trainer.num_steps?"),
    ([GLM, "traner.num_steps=2"], "error: traner.num_steps=2: unknown key; did you mean trainer?"),
    ([GLM, "trainer.optim.lrr=1"], "error: trainer.optim.lrr=1: unknown key; did you mean trainer.optim.lr?"),
    ([GLM, "+trainer.foo=1"], "error: trainer.foo=1: unknown key; did you mean trainer."),
    ([GLM, "rollout.topology.groups.engine.num_engine=2"], "did you mean rollout.topology.groups.engine.num_engines?"),
    ([GLM, "model.family=gml_omni"], "error: model.family=gml_omni: no such family; did you mean glm_omni?"),
    (
        [QWEN, "+rollout.server_args.common.mem_fraction_statik=0.1"],
        "no such SGLang server argument; did you mean mem_fraction_static?",
    ),
    ([QWEN, "reward.score=exat"], "error: reward.score=exat: no such part; did you mean exact?"),
    # types and ranges
    ([GLM, "trainer.num_steps=many"], "error: trainer.num_steps=many: expected int, got str; give int"),
    ([GLM, "trainer.num_steps=-1"], "error: trainer.num_steps=-1: expected int >= 0; give int >= 0"),
    ([GLM, "rollout.temperature=0"], "error: rollout.temperature=0: expected float > 0.0; give float > 0.0"),
    ([GLM, "rollout.top_p=1.5"], "error: rollout.top_p=1.5: expected float <= 1.0"),
    ([GLM, "trainer.optim.lr=nan"], "error: trainer.optim.lr=nan: expected float > 0.0"),
    ([GLM, "rollout.num_prompts=2.5"], "error: rollout.num_prompts=2.5: expected int, got float; give int"),
    ([GLM, "seed=null"], "error: seed=None: expected int, got null; give int"),
    ([GLM, "cluster.device=gpu"], "error: cluster.device=gpu: invalid enum value 'gpu'; "),
    ([GLM, "trainer=7"], "error: trainer=7: no such option"),
    ([GLM, "trainer.optim=7"], "error: trainer.optim=7: expected a group of keys; set its keys one by one"),
    ([GLM, "rollout.topology.groups.engine.worker_type=decoder"], "invalid enum value 'decoder'; did you mean decode?"),
    ([GLM, "algorithm.compares_group=perhaps"], "error: algorithm.compares_group=perhaps: expected bool, got str"),
    ([GLM, "model.freeze=vision"], "error: model.freeze=vision: expected array, got str; give array"),
    # syntax
    ([GLM, "trainer.num_steps=[1,2"], "error: trainer.num_steps=[1,2: cannot be parsed"),
    ([GLM, "seed=" + "[" * 600], "[[[...: cannot be parsed"),
    ([GLM, "name=${nothing}"], "Interpolation key 'nothing' not found; mend the interpolation"),
    # modes and resuming that are not there yet
    ([GLM, "mode=replay"], "error: mode=replay: not built yet; use one of run, plan"),
    ([GLM, "mode=runn"], "error: mode=runn: invalid enum value 'runn'; did you mean run?"),
    ([GLM, "resume=/nowhere"], "error: resume=/nowhere: /nowhere is missing; name a run folder, or one of its"),
    ([GLM, "trainer.checkpoint.weights_from=/nowhere"], "error: trainer.checkpoint.weights_from=/nowhere: /nowhere is"),
    # media that nobody sends or trains
    ([GLM, "model.spec.encoders=[vision,audio]"], "error: model.spec.encoders[1]=audio: audio is neither sent to the"),
    (
        [GLM, "+model.encoders.video=encoders.video."],
        "error: model.encoders.video=encoders.video.: video is neither sent",
    ),
    (
        [GLM, "+rollout.generate.environment.video=a.mp4"],
        "error: rollout.generate.environment.video=a.mp4: video is neither",
    ),
    ([GLM, "+data.columns.videos=clip"], "error: data.columns.videos=clip: video is neither sent to the engines nor"),
    # the model does not fit
    (
        [GLM, "trainer.parallel.tp=3"],
        "error: trainer.parallel.tp=3: does not divide num_attention_heads=4 of the model; give a divisor of 4",
    ),
    (
        [GLM, "trainer.parallel.tp=4"],
        "error: trainer.parallel.tp=4: does not divide num_key_value_heads=2 of the model",
    ),
    (
        [GLM, "rollout.topology.groups.engine.tp=3"],
        "error: rollout.topology.groups.engine.tp=3: does not divide num_attention_heads=4",
    ),
    ([GLM, "trainer.parallel.pp=3"], "error: trainer.parallel.pp=3: does not divide num_hidden_layers=2 of the model"),
    (
        [GLM, "model.hf_config=/nowhere/config.json"],
        "error: model.hf_config=/nowhere/config.json: no /nowhere/config.json; name a",
    ),
    (
        [GLM, "model.hf_checkpoint=/nowhere"],
        "error: model.hf_checkpoint=/nowhere: no such folder; name a Hugging Face checkpoint folder",
    ),
    # topologies and batches that contradict themselves
    (
        [GLM, "model.freeze=[]"],
        "the vision encoder (encoders.vision.) would train, "
        "and an encoder-only server has no way to take new weights; add",
    ),
    ([GLM, "model.freeze=['(']"], "error: model.freeze=(: not a regular expression"),
    (
        [QWEN, "rollout/topology=epd"],
        "encoder: SGLang cannot split Qwen3ForCausalLM into encoder and language model; use rollout/topology=single",
    ),
    ([GLM, "rollout.epd_architectures=[]"], "SGLang cannot split Glm4vForConditionalGeneration"),
    (
        [GLM, "rollout.group_size=1"],
        "error: rollout.group_size=1: advantages compare the samples of one prompt, "
        "and one sample has none to compare with; give 2 or more",
    ),
    (
        [GLM, "trainer.max_tokens=9"],
        "error: trainer.max_tokens=9: one sample may take expected_prompt_tokens + max_new",
    ),
    ([GLM, "trainer.recompute=half"], "error: trainer.recompute=half: invalid enum value 'half'"),
    (
        [GLM, "+model.transformer.recompute_granularity=full"],
        "error: model.transformer.recompute_granularity=full: trainer.recompute is where this is set",
    ),
    (
        [GLM, "+model.transformer.sequence_parallel=true"],
        "error: model.transformer.sequence_parallel=True: trainer.parallel.sp is where this is set",
    ),
    (
        [QWEN, "+model.transformer.num_layers=1"],
        "error: model.transformer.num_layers=1: a shape of the weights, which is read from config.json",
    ),
    (
        [QWEN, "+model.transformer.add_bias_linea=true"],
        "TransformerConfig has no such field; did you mean add_bias_linear?",
    ),
    (
        [QWEN, "+model.transformer.num_layers_in_first_pipeline_stage=many"],
        "error: model.transformer.num_layers_in_first_pipeline_stage=many: expected int | null, got str",
    ),
    ([QWEN, "trainer.optim.min_lr=1"], "error: trainer.optim.min_lr=1.0: above trainer.optim.lr=0.0005, which decays"),
    ([QWEN, "trainer.optim.beta1=1.0"], "error: trainer.optim.beta1=1.0: expected float < 1.0"),
    ([GLM, "trainer.num_minibatches=7"], "error: trainer.num_minibatches=7: 128 samples a step do not divide by"),
    ([GLM, "cluster.device=cuda"], "error: cluster.device=cuda: this machine shows no GPU; use cluster.device=auto"),
    ([GLM, "cluster.base_port=70000"], "error: cluster.base_port=70000: ports 70000 to"),
    # targets
    (
        [QWEN, "data._target_=os.system"],
        "error: data._target_=os.system: only objects of components, slime_launch are allowed",
    ),
    ([QWEN, "data._target_=components.data.reasoning_gym.importlib"], "defines no class or function importlib"),
    ([QWEN, "data._target_=components.rollout.client.asyncio.run"], "no module components.rollout.client.asyncio"),
    ([QWEN, "data._target_=components.rollout.client.httpx"], "defines no class or function httpx"),
    ([QWEN, "data._target_=components.data.nothing.At"], "no module components.data.nothing"),
    ([QWEN, "model.spec._target_=5"], "error: model.spec._target_=5: not a dotted name"),
    (
        [QWEN, "driver.loop._target_=os.abort"],
        "error: driver.loop._target_=os.abort: only objects of components, slime_launch are allowed",
    ),
    (
        [QWEN, "+tracking.trackers.x._target_=shutil.copy"],
        "error: tracking.trackers.x._target_=shutil.copy: only objects of",
    ),
    (
        [QWEN, "+hydra.callbacks.x._target_=shutil.copy"],
        "error: hydra.callbacks={'x': {'_target_': 'shutil.copy'}}: sealed, since Hydra would run or inherit it",
    ),
    ([QWEN, "hydra.sweeper._target_=os.system"], "error: hydra.sweeper={'_target_': 'os.system'"),
    (
        [QWEN, "+hydra.job_logging.handlers.x.class=subprocess.Popen"],
        "error: hydra.job_logging={",
    ),
    ([QWEN, "hydra.searchpath=[pkg://evil]"], "error: hydra.searchpath=[pkg://evil]: not supported; use --config-dir"),
    ([QWEN, "+hydra.job_logging.handlers.x.class=logging.FileHandler"], "error: hydra.job_logging={"),
    ([QWEN, "+hydra.job.env_set.LD_PRELOAD=/evil.so"], "error: hydra.job.env_set={'LD_PRELOAD': '/evil.so'}: sealed"),
    ([QWEN, "+hydra.sweeper.x=3"], "error: hydra.sweeper.x=3: unknown key; choose one of max_batch_size, params"),
    ([QWEN, "allow_targets=[a"], "error: allow_targets=[a: cannot be parsed"),
    ([QWEN, "seed=1,2"], "error: seed=1,2: several values need a sweep; add -m"),
    ([QWEN, "name='a/../b'"], "error: name=a/../b: expected str matching regex"),
    # what the launcher sets for each server
    ([QWEN, "+rollout.server_args.common.host=0.0.0.0"], "error: rollout.server_args.common.host=0.0.0.0: set by"),
    ([QWEN, "+rollout.router_args.host=0.0.0.0"], "error: rollout.router_args.host=0.0.0.0: set by the launcher"),
    (
        [QWEN, "+rollout.server_env.cpu.LD_PRELOAD=/evil.so"],
        "error: rollout.server_env.cpu.LD_PRELOAD=/evil.so: changes",
    ),
    ([GLM, "~model.encoders.vision", "model.freeze=[]"], "model.encoders names no encoder"),
    ([QWEN, "--config-dir", "/nowhere"], "error: --config-dir=/nowhere: no such folder"),
    ([QWEN, "--nonsense"], "unrecognized arguments: --nonsense; slime-launch --help lists what there is"),
    ([QWEN, "--config-name", "other"], "error: --config-name=other: not supported"),
]


@pytest.mark.parametrize(("args", "line"), BAD, ids=[" ".join(args)[:60] for args, _ in BAD])
def test_refused(
    args: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check_refusal(args, line, capsys)
    assert list(tmp_path.iterdir()) == []


def test_the_command_lists_every_problem_and_leaves_nothing(tmp_path: Path) -> None:
    ran = slime_launch(
        GLM, "trainer.num_step=2", "rollout.group_size=0", "cluster.device=gpu", "data._target_=os.system", cwd=tmp_path
    )
    assert (ran.code, ran.out) == (2, "")
    keys = [line.removeprefix("error: ").split("=")[0] for line in ran.err.splitlines()]
    assert sorted(keys) == ["cluster.device", "data._target_", "rollout.group_size", "trainer.num_step"]
    assert "Traceback" not in ran.err
    assert list(tmp_path.iterdir()) == []


def write_yaml(folder: Path, name: str, text: str) -> Path:
    file = folder / "conf" / "experiment" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("# @package _global_\n" + text)
    return folder / "conf"


@pytest.mark.parametrize(
    "node",
    [
        "{{_target_: shutil.copy, src: {src}, dst: {dst}}}",
        "'${{oc.create:{{_target_:shutil.copy,src:{src},dst:{dst}}}}}'",
        "{{_target_: hydra.experimental.callbacks.Path.touch, self: {{_target_: pathlib.Path, _args_: [{dst}]}}}}",
    ],
)
def test_a_callback_in_a_users_yaml_does_not_run(node: str, tmp_path: Path) -> None:
    victim = tmp_path / "copied"
    source = tmp_path / "source"
    source.write_text("x")
    text = f"hydra:\n  callbacks:\n    x: {node.format(src=source, dst=victim)}\n"
    ran = slime_launch("+experiment=evil", "--config-dir", str(write_yaml(tmp_path, "evil", text)), cwd=tmp_path)
    assert ran.code == 2
    assert "error: hydra.callbacks=" in ran.err
    assert not victim.exists()


def test_a_module_is_not_imported_before_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\ndef f(): pass\n")
    ran = slime_launch("data._target_=evil.f", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"})
    assert ran.code == 2
    assert not (tmp_path / "imported").exists()


def test_yaml_cannot_grant_itself_packages(tmp_path: Path) -> None:
    folder = write_yaml(tmp_path, "mine", "allow_targets: [shutil]\n")
    ran = slime_launch("+experiment=mine", "--config-dir", str(folder), cwd=tmp_path)
    assert ran.code == 2
    assert "a config file cannot grant itself packages; give it on the command line: allow_targets=[shutil]" in ran.err


def test_a_target_made_by_a_resolver_is_refused(tmp_path: Path) -> None:
    text = "tracking: {trackers: {t: '${oc.create:{_target_:os.system,command:id}}'}}\n"
    ran = slime_launch("+experiment=mine", "--config-dir", str(write_yaml(tmp_path, "mine", text)), cwd=tmp_path)
    assert ran.code == 2
    assert "error: tracking.trackers.t._target_=os.system: only objects of" in ran.err


def test_unknown_keys_in_a_users_yaml_are_all_listed(tmp_path: Path) -> None:
    folder = write_yaml(tmp_path, "mine", "trainer: {num_step: 3, optim: {learning_rate: 1}}\nseeed: 4\n")
    ran = slime_launch("+experiment=mine", "--config-dir", str(folder), cwd=tmp_path)
    assert ran.code == 2
    assert len(ran.err.splitlines()) == 3


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint folder that passes: a config.json, an empty but valid safetensors file, a tokenizer."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "vocab_size": 112,
        "max_position_embeddings": 512,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def checkpoint_errors(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    code = command([QWEN, f"model.hf_checkpoint={folder}", "mode=plan"])
    err = capsys.readouterr().err
    assert code == (2 if err else 0)
    return err


def test_a_whole_checkpoint_passes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert checkpoint_errors(checkpoint, tmp_path, monkeypatch, capsys) == ""


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.json", b"{", "is not readable JSON"),
        ("config.json", b"[]", "names no architectures"),
        ("config.json", None, "no "),
        ("model.safetensors", None, "has no safetensors weights"),
        ("model.safetensors", (9999).to_bytes(8, "little") + b"{}", "is cut short or no safetensors file"),
        ("model.safetensors", b"", "is cut short or no safetensors file"),
        ("tokenizer.json", None, "has no tokenizer"),
        ("modeling.py", b"", "holds modeling.py, which would run code when loaded"),
        ("pytorch_model.bin", b"", "holds pytorch_model.bin, which would run code when loaded"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors is missing"),
        ("model.safetensors.index.json", b"{}", "is broken"),
        ("model.safetensors.index.json", b'{"weight_map": {}}', "holds both model.safetensors and"),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"a": "model.safetensors"}}',
            "lists a in model.safetensors, which does not hold it",
        ),
    ],
)
def test_a_broken_checkpoint_is_refused(
    name: str, content: bytes | None, reason: str, checkpoint: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if content is None:
        (checkpoint / name).unlink()
    else:
        (checkpoint / name).write_bytes(content)
    assert reason in checkpoint_errors(checkpoint, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("shape", "key"),
    [
        ({"architectures": ["LlamaForCausalLM"], "mlp_bias": True}, "mlp_bias"),
        ({"architectures": ["Qwen2ForCausalLM"], "head_dim": 24}, "head_dim"),
        ({"architectures": ["Qwen3MoeForCausalLM"], "mlp_only_layers": [0]}, "mlp_only_layers"),
        (
            {"architectures": ["Qwen3ForCausalLM"], "rope_parameters": {"rope_type": "yarn", "attention_factor": 0.9}},
            "rope_parameters.attention_factor",
        ),
    ],
)
def test_what_the_engine_ignores_is_refused(
    shape: dict[str, object], key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.json"
    sizes = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 112, "max_position_embeddings": 512}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    config.write_text(json.dumps({**sizes, **heads, **shape}))
    assert command([QWEN, "model=auto", f"model.hf_config={config}", "mode=plan", f"hydra.run.dir={tmp_path}/run"]) == 2
    assert f"config.json sets {key}, which SGLang 0.5.23 does not serve" in capsys.readouterr().err
