"""What is said while planning of layouts, precision, and of what trains."""

import json
from pathlib import Path
from typing import Any

import pytest

from slime_launch.cli import command
from tests.slime_launch.commands import check_refusal

GLM, QWEN, MOE = "+experiment=glm_omni_grpo", "+experiment=qwen3_grpo", "model=qwen3_moe"
CUDA = ["cluster.gpus_per_node=8", "cluster.gpu_memory_gb=999"]
PARALLEL = "trainer.parallel."

BAD: list[tuple[list[str], str]] = [
    # CPU
    ([QWEN, MOE, PARALLEL + "ep=2", PARALLEL + "dp=2", PARALLEL + "tp=2"], "sp=False: Megatron trains experts on"),
    ([QWEN, "trainer.optim.distributed=true"], "distributed optimizer wants CUDA tensors; set it to false,"),
    ([QWEN, "trainer.precision=bfloat16"], "weights train in float32 there; set it to auto, or train on GPUs"),
    ([QWEN, "trainer.precision=fp8"], "error: trainer.precision=fp8: invalid enum value 'fp8'"),
    # CUDA
    (
        [QWEN, *CUDA, PARALLEL + "cp=2", "+model.transformer.softmax_type=learnable"],
        "model.transformer.softmax_type=learnable: is computed on whole rows only, and trainer.parallel.cp=2 ranks",
    ),
    ([QWEN, PARALLEL + "sp=true"], "sp=True: trainer.parallel.tp=1 leaves nobody to share the sequence with"),
    ([QWEN, MOE, *CUDA, PARALLEL + "tp=2"], "sp=False: Megatron trains experts on tensor-parallel ranks only if these"),
    ([QWEN, PARALLEL + "ep=2", PARALLEL + "dp=2"], "ep=2: the model has no experts; set it to 1"),
    ([QWEN, MOE, *CUDA, PARALLEL + "ep=3", PARALLEL + "dp=3"], "ep=3: does not divide the model's 8 experts; give a"),
    ([QWEN, MOE, PARALLEL + "ep=2"], "ep=2: does not divide trainer.parallel.dp x cp = 1, whose ranks"),
    # virtual stages
    ([QWEN, PARALLEL + "vpp=2"], "vpp=2: trainer.parallel.pp=1 has no stages to interleave; raise pp"),
    ([QWEN, PARALLEL + "pp=2", PARALLEL + "vpp=2"], "vpp=2: pp x vpp = 4 does not divide num_hidden_layers=2 of the"),
    (
        [QWEN, PARALLEL + "pp=2", PARALLEL + "vpp=2", "+model.transformer.num_layers_in_first_pipeline_stage=1"],
        "vpp=2: virtual stages are of one size; take out num_layers_in_first_pipeline_stage",
    ),
    # what trains
    ([GLM, "model.train_only=['^decoder']"], "error: model.train_only=['^decoder']: excludes model.freeze="),
    ([QWEN, "model.train_only=['(']"], "error: model.train_only=(: not a regular expression"),
    ([GLM, "model.freeze=[]", "model.train_only=['^encoders']"], "the vision encoder (encoders.vision.) would train"),
    # a spec behind the adapter
    (
        [QWEN, "model.spec={_target_: components.models.slime_spec.adapt, spec: os.system}"],
        "error: model.spec.spec=os.system: only objects of components, slime_launch are allowed; name a function of",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("args", "line"), BAD, ids=lambda value: value[:40] if isinstance(value, str) else "")
def test_refused(
    args: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check_refusal(args, line, capsys)


def trainer(args: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert command([QWEN, "mode=plan", "hydra.run.dir=run", *args]) == 0, capsys.readouterr().err
    plan: dict[str, Any] = json.loads(Path("run", "plan.json").read_text())
    found: dict[str, Any] = next(actor for actor in plan["actors"] if actor["kind"] == "trainer")
    return found


def test_precision_follows_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    on_cpu, on_cuda = trainer([], capsys), trainer(CUDA, capsys)
    assert (on_cpu["args"]["precision"], on_cuda["args"]["precision"]) == ("float32", "bfloat16")
    # bytes a number: 2 of weight, 4 of float32 gradient, 12 of moments and float32 weight; on CPU 4, 4 and 8
    weights, gradients, optimizer = (on_cuda["memory_mb"][name] for name in ("weights", "gradients", "optimizer"))
    assert weights * 2 == pytest.approx(on_cpu["memory_mb"]["weights"], rel=0.1)
    assert (gradients / weights, optimizer / weights) == pytest.approx((2, 6), rel=0.1)
    split = trainer([*CUDA, "trainer.optim.distributed=true", "trainer.parallel.dp=2"], capsys)
    assert split["memory_mb"]["optimizer"] == pytest.approx(optimizer / 2, rel=0.1)
    part = trainer([*CUDA, "model.train_only=['final_layernorm']"], capsys)
    assert part["memory_mb"]["weights"] == weights and part["memory_mb"].get("gradients", 0) < gradients / 10


def test_experts_are_counted_as_transformers_5_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from slime_launch.paths import COMPONENTS

    hf = json.loads((COMPONENTS / "models" / "qwen3_moe" / "configs" / "tiny.json").read_text())
    hf["num_local_experts"] = hf.pop("num_experts", None) or hf["num_local_experts"]
    (tmp_path / "config.json").write_text(json.dumps(hf))
    lines = [
        QWEN,
        *CUDA,
        f"model.hf_config={tmp_path / 'config.json'}",
        PARALLEL + "ep=3",
        PARALLEL + "dp=3",
        "mode=plan",
    ]
    assert command([*lines, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert "ep=3: does not divide the model's 8 experts" in capsys.readouterr().err
