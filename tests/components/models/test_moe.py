"""Families with experts on one rank: logits and gradients of transformers, weights in and out, what trains."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from components.megatron.trainer import MegatronTrainer
from slime_launch.errors import ComponentError
from slime_launch.types import Sample
from tests.components.megatron.helpers import (
    WITH_IMAGES,
    hf_model,
    image_prompt,
    make_sample,
    random_samples,
    trainer_settings,
    write_random,
)
from tests.components.models.moe_shapes import FAMILIES, SHAPES, family_of

Start = Callable[..., MegatronTrainer]
BIAS = "mlp.gate.e_score_correction_bias"
EXPERT = re.compile(r".*\.mlp\.experts\.\d+\.")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("experts")
    return {name: write_random(root / name, family_of(name), **shape) for name, shape in SHAPES.items()}


@pytest.fixture
def start(folders: dict[str, Path]) -> Iterator[Start]:
    running: list[MegatronTrainer] = []

    def begin(name: str, needs: dict[str, Any] | None = None, folder: Path | None = None, **settings: Any) -> Any:
        trainer = MegatronTrainer(**trainer_settings(folder or folders[name], family_of(name), **settings))
        running.append(trainer)
        trainer.start(needs or {})
        return trainer

    yield begin
    for trainer in running:
        trainer.stop()


def saved(trainer: MegatronTrainer, folder: Path) -> dict[str, torch.Tensor]:
    trainer.save_hf(str(folder))
    return load_file(folder / "model.safetensors")


def differ(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Names whose tensors are not the same to the bit."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def logprobs(model: Any, sample: Sample) -> torch.Tensor:
    """transformers' logprobs of a sample's response [R], with gradient."""
    ids = torch.tensor([[*sample.prompt_ids, *sample.response_ids]])
    media = {name: torch.from_numpy(value) for name, value in sample.media.items()}
    if media:
        media["mm_token_type_ids"] = (ids == 14).int()
    logits_SV = model(input_ids=ids, **media).logits[0]
    rows_RV = logits_SV[len(sample.prompt_ids) - 1 : -1].log_softmax(-1)
    return rows_RV.gather(-1, torch.tensor(sample.response_ids)[:, None])[:, 0]


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_transformers(name: str, folders: dict[str, Path], start: Start) -> None:
    rng = np.random.default_rng(1)
    grids: list[list[tuple[int, int, int]]] = [[], [], []]
    if family_of(name) in WITH_IMAGES:
        grids += [[(1, 4, 4)], [(1, 6, 4), (1, 4, 8)]]
    prompts = [image_prompt(rng, some, text) if some else (rng.integers(16, 112, text).tolist(), {})
               for some, text in zip(grids, (1, 7, 33, 3, 5), strict=False)]  # fmt: skip
    samples = [make_sample(0, i, ids, [20 + i, 30], media=media) for i, (ids, media) in enumerate(prompts)]
    parts = start(name)._ready()
    model = hf_model(folders[name], family_of(name))
    seen = 0
    for batch in parts.batcher.cut(samples, torch.zeros(len(samples)), 0, 1):
        with torch.no_grad():
            logits_BSV = parts.chunks[0](**batch.inputs)
        for row_S, mine_SV in zip(batch.inputs["input_ids"].tolist(), logits_BSV, strict=True):
            for sample in samples:
                ids = [*sample.prompt_ids, *sample.response_ids]
                if row_S[: len(ids)] == ids and not any(row_S[len(ids) :]):
                    theirs_SV = reference_logits(model, sample)
                    assert (mine_SV[: len(ids), : theirs_SV.shape[1]] - theirs_SV).abs().max() <= 1e-4
                    seen += 1
    assert seen == len(samples)


def reference_logits(model: Any, sample: Sample) -> torch.Tensor:
    ids = torch.tensor([[*sample.prompt_ids, *sample.response_ids]])
    media = {name: torch.from_numpy(value) for name, value in sample.media.items()}
    if media:
        media["mm_token_type_ids"] = (ids == 14).int()
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, **media).logits[0]
    return logits


@pytest.mark.parametrize("name", ["qwen3_moe-odd", "glm4_moe-odd", "glm4v_moe"])
def test_gradient_and_gap_are_those_of_transformers(name: str, folders: dict[str, Path], start: Start) -> None:
    samples = random_samples(family_of(name))
    model = hf_model(folders[name], family_of(name))
    loss, tokens = torch.zeros(()), sum(sum(sample.loss_mask) for sample in samples)
    for sample in samples:
        mine = logprobs(model, sample)
        sample.logprobs = mine.tolist()
        group = torch.tensor([other.reward for other in samples if other.group == sample.group])
        advantage = (sample.reward - group.mean()) / (group.std() + 1e-6)
        loss = loss - (advantage * (mine - mine.detach()).exp() * torch.tensor(sample.loss_mask)).sum() / tokens
    loss.backward()
    trained = [weight for key, weight in model.named_parameters() if ".visual." not in key]
    norm = torch.stack([weight.grad.norm() for weight in trained]).norm()
    freeze = [r"^encoders\."] if family_of(name) in WITH_IMAGES else []
    metrics = start(name, freeze=freeze, max_logprob_gap=1e-3).train(0, samples)
    assert metrics["train/train_rollout_logprob_abs_diff/max"] < 1e-4
    assert metrics["train/loss"] == pytest.approx(float(loss.detach()), abs=1e-6)
    assert metrics["train/grad_norm"] == pytest.approx(float(norm), rel=1e-4)


@pytest.mark.parametrize("name", [name for name in SHAPES if "-odd" in name])
def test_save_gives_the_checkpoint_back_bit_for_bit(
    name: str, folders: dict[str, Path], start: Start, tmp_path: Path
) -> None:
    before = load_file(folders[name] / "model.safetensors")
    after = saved(start(name), tmp_path / "saved")
    assert not differ(before, after)
    experts = [key for key in after if ".mlp.experts.0.gate_proj.weight" in key]
    biases = [key for key in after if key.endswith(BIAS)]
    assert experts and all(after[key].ndim == 2 for key in experts)
    assert len(biases) == (0 if name == "qwen3_moe-odd" else len(experts)) and all(after[key].any() for key in biases)


class Sink:
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}

    def connect(self) -> None: ...

    def begin(self) -> None: ...

    def send(self, bucket: Sequence[tuple[str, torch.Tensor]], version: int | None) -> None:
        self.weights |= {name: tensor.clone() for name, tensor in bucket}

    def end(self) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize("family", FAMILIES)
def test_sync_sends_every_expert_and_the_selection_bias(family: str, folders: dict[str, Path], start: Start) -> None:
    sink = Sink()
    start(family, {"weight_sink": [sink]}).sync(1)
    stored = load_file(folders[family] / "model.safetensors")
    assert not differ({name: value for name, value in stored.items() if ".visual." not in name}, sink.weights)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_moves_all_but_tower_selection_bias_and_experts_without_tokens(
    family: str, folders: dict[str, Path], start: Start, tmp_path: Path
) -> None:
    trainer = start(family, freeze=[r"^encoders\."] if family in WITH_IMAGES else [])
    trainer.train(0, random_samples(family, groups=4))
    before = load_file(folders[family] / "model.safetensors")
    moved = differ(before, saved(trainer, tmp_path / "saved"))
    still = {name for name in before.keys() - moved if ".visual." not in name and not name.endswith(BIAS)}
    idle, busy = ({EXPERT.match(name)[0] for name in names if EXPERT.match(name)} for names in (still, moved))  # type: ignore[index]
    assert all(EXPERT.match(name) for name in still) and not idle & busy
    assert len(busy) > 2 * len(idle)


def test_the_selection_bias_moves_if_asked_to(folders: dict[str, Path], start: Start, tmp_path: Path) -> None:
    trainer = start("glm4_moe", transformer={"moe_router_bias_update_rate": 0.5})
    trainer.train(0, random_samples("glm4_moe"))
    before = load_file(folders["glm4_moe"] / "model.safetensors")
    after = saved(trainer, tmp_path / "saved")
    name = f"model.layers.1.{BIAS}"
    assert set((after[name] - before[name]).abs().tolist()) <= {0.0, 0.5} and name in differ(before, after)


def test_layers_for_speculation_are_carried_along(folders: dict[str, Path], start: Start, tmp_path: Path) -> None:
    folder = copy_with(folders["glm4_moe"], tmp_path / "in", num_nextn_predict_layers=1)
    tensors = load_file(folder / "model.safetensors")
    extra = {"model.layers.2.eh_proj.weight": torch.randn(3, 5), "model.layers.2.enorm.weight": torch.randn(4)}
    save_file(tensors | extra, folder / "model.safetensors", metadata={"format": "pt"})
    sink = Sink()
    trainer = start("glm4_moe", {"weight_sink": [sink]}, folder)
    trainer.sync(1)
    assert sink.weights.keys() == tensors.keys()
    assert not differ(tensors | extra, saved(trainer, tmp_path / "out"))


def copy_with(folder: Path, target: Path, **changes: Any) -> Path:
    """A copy of a checkpoint with another config.json."""
    import json
    import shutil

    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    return target


def test_stacked_experts_are_refused_by_name(folders: dict[str, Path], start: Start, tmp_path: Path) -> None:
    folder = copy_with(folders["qwen3_moe"], tmp_path / "stacked")
    hf_model(folders["qwen3_moe"], "qwen3_moe").save_pretrained(folder, save_original_format=False)
    with pytest.raises(ComponentError, match=r"missing \[.*experts\.0\.down_proj\.weight.* more, extra .*gate_up_proj"):
        start("qwen3_moe", folder=folder)


@pytest.mark.parametrize(
    "override",
    ["moe_grouped_gemm", "moe_permute_fusion", "moe_router_fusion", "moe_shared_expert_overlap",
     "moe_expert_capacity_factor", "expert_model_parallel_size"],
)  # fmt: skip
def test_what_the_cpu_cannot_do_is_refused(override: str, start: Start) -> None:
    with pytest.raises(ComponentError, match=override):
        start("glm4_moe", transformer={override: 2})
