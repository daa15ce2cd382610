"""One rank: logits against transformers, the step, weights out, errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from components.megatron.trainer import MegatronTrainer
from slime_launch.errors import ComponentError, LaunchError, LogprobGapError
from slime_launch.interfaces import Trainer, WeightSink
from slime_launch.types import Sample
from tests.components.megatron.helpers import (
    OPTIM,
    hf_model,
    image_prompt,
    make_sample,
    random_samples,
    trainer_settings,
    write_random,
)

Start = Callable[..., MegatronTrainer]
ODD_QWEN = {"vocab_size": 113, "tie_word_embeddings": True, "num_hidden_layers": 3, "num_key_value_heads": 4}
ODD_GLM = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 96,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 500.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [1, 1, 2],
    },
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    wanted = {"qwen3": {}, "qwen3-odd": ODD_QWEN, "glm_omni": {}, "glm_omni-odd": ODD_GLM}
    return {name: write_random(root / name, name.partition("-")[0], **shape) for name, shape in wanted.items()}


@pytest.fixture
def start(folders: dict[str, Path]) -> Iterator[Start]:
    running: list[MegatronTrainer] = []

    def begin(name: str, needs: dict[str, Any] | None = None, **overrides: Any) -> MegatronTrainer:
        family = overrides.pop("family", name.partition("-")[0])
        trainer = MegatronTrainer(**trainer_settings(folders[name], family, **overrides))
        running.append(trainer)
        trainer.start(needs or {})
        return trainer

    yield begin
    for trainer in running:
        trainer.stop()


class MemorySink:
    """Keeps what it is sent, and checks that it is sent in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.weights: dict[str, torch.Tensor] = {}
        self.versions: list[int | None] = []
        self.sizes: list[int] = []

    def connect(self) -> None:
        self.calls.append("connect")

    def begin(self) -> None:
        self.calls.append("begin")

    def send(self, bucket: Sequence[tuple[str, torch.Tensor]], version: int | None) -> None:
        self.calls.append("send")
        self.versions.append(version)
        self.sizes.append(sum(tensor.nbytes for _, tensor in bucket))
        self.weights |= {name: tensor.clone() for name, tensor in bucket}

    def end(self) -> None:
        self.calls.append("end")

    def close(self) -> None:
        self.calls.append("close")


def reference_logits(model: Any, sample: Sample) -> torch.Tensor:
    ids = torch.tensor([[*sample.prompt_ids, *sample.response_ids]])
    media = {name: torch.from_numpy(value) for name, value in sample.media.items()}
    if media:
        media["mm_token_type_ids"] = (ids == 14).int()
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, **media).logits[0]
    return logits


def with_reference_logprobs(model: Any, samples: list[Sample], temperature: float) -> list[Sample]:
    for sample in samples:
        rows = reference_logits(model, sample)[len(sample.prompt_ids) - 1 : -1] / temperature
        chosen = rows.log_softmax(-1).gather(-1, torch.tensor(sample.response_ids)[:, None])
        sample.logprobs = chosen[:, 0].tolist()
    return samples


@pytest.mark.parametrize("name", ["qwen3", "qwen3-odd", "glm_omni", "glm_omni-odd"])
def test_logits_are_those_of_transformers(name: str, folders: dict[str, Path], start: Start) -> None:
    family = name.partition("-")[0]
    rng = np.random.default_rng(1)
    grids: list[list[tuple[int, int, int]]] = [[], [], []]
    if family == "glm_omni":
        grids += [[(1, 4, 4)], [(1, 2, 6)], [(1, 6, 4), (1, 4, 8)]]
    prompts = [image_prompt(rng, some, text) if some else (rng.integers(16, 112, text).tolist(), {})
               for some, text in zip(grids, (1, 7, 33, 3, 1, 5), strict=False)]  # fmt: skip
    samples = [make_sample(0, i, ids, [20 + i, 30], media=media) for i, (ids, media) in enumerate(prompts)]
    parts = start(name)._ready()
    model = hf_model(folders[name], family)
    seen = 0
    for batch in parts.batcher.cut(samples, torch.zeros(len(samples)), 0, 1):
        with torch.no_grad():
            logits_BSV = parts.chunks[0](**batch.inputs)
        for row_S, mine_SV in zip(batch.inputs["input_ids"].tolist(), logits_BSV, strict=True):
            for sample in samples:
                ids = [*sample.prompt_ids, *sample.response_ids]
                if row_S[: len(ids)] == ids and not any(row_S[len(ids) :]):
                    assert (mine_SV[: len(ids)] - reference_logits(model, sample)).abs().max() <= 1e-4
                    seen += 1
    assert seen == len(samples)


@pytest.mark.parametrize("name", ["qwen3-odd", "glm_omni"])
def test_the_gap_to_an_equal_engine_is_rounding(name: str, folders: dict[str, Path], start: Start) -> None:
    family = name.partition("-")[0]
    samples = with_reference_logprobs(hf_model(folders[name], family), random_samples(family), temperature=0.7)
    metrics = start(name, temperature=0.7, max_logprob_gap=1e-3).train(0, samples)
    assert metrics["train/train_rollout_logprob_abs_diff/max"] < 1e-4
    assert 0 < metrics["train/train_rollout_logprob_abs_diff"] <= metrics["train/train_rollout_logprob_abs_diff/max"]


def test_metrics_have_their_names(start: Start) -> None:
    trainer = start("qwen3")
    assert isinstance(trainer, Trainer)
    metrics = trainer.train(0, random_samples("qwen3"))
    gap = "train_rollout_logprob_abs_diff"
    names = ("loss", "grad_norm", "entropy", "ppo_kl", "pg_clipfrac", "lr-pg_0", gap, gap + "/max")
    assert set(metrics) == {f"train/{name}" for name in names} | {"perf/train_time"}
    assert metrics["train/ppo_kl"] == metrics["train/pg_clipfrac"] == 0.0
    assert 0 < metrics["train/entropy"] <= math.log(112)


def test_the_step_does_not_depend_on_how_the_batch_is_cut(folders: dict[str, Path], start: Start) -> None:
    results = []
    for size in (1, 3, 64):
        trainer = start("glm_omni", micro_batch_size=size)
        results.append([trainer.train(step, random_samples("glm_omni")) for step in range(2)])
        trainer.stop()
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            assert mine["train/loss"] == pytest.approx(theirs["train/loss"], abs=1e-6)
            assert mine["train/grad_norm"] == pytest.approx(theirs["train/grad_norm"], rel=1e-4)


def test_loss_and_gradient_are_those_of_plain_torch(folders: dict[str, Path], start: Start) -> None:
    samples = random_samples("qwen3")
    metrics = start("qwen3").train(0, samples)
    model = hf_model(folders["qwen3"], "qwen3")
    total, tokens = torch.zeros(()), 0
    for group in range(2):
        mine = [sample for sample in samples if sample.group == group]
        rewards = torch.tensor([sample.reward for sample in mine])
        for sample, advantage in zip(mine, (rewards - rewards.mean()) / (rewards.std() + 1e-6), strict=True):
            rows = model(torch.tensor([[*sample.prompt_ids, *sample.response_ids]])).logits[0]
            rows = rows[len(sample.prompt_ids) - 1 : -1].log_softmax(-1)
            logprobs = rows.gather(-1, torch.tensor(sample.response_ids)[:, None])[:, 0]
            mask = torch.tensor(sample.loss_mask)
            total = total - (advantage * (logprobs - logprobs.detach()).exp() * mask).sum()
            tokens += int(mask.sum())
    loss = total / tokens
    loss.backward()
    norm = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
    assert metrics["train/loss"] == pytest.approx(float(loss), abs=1e-6)
    assert metrics["train/grad_norm"] == pytest.approx(float(norm), rel=1e-4)


def test_training_lowers_the_loss_of_a_fixed_batch(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIME_LAUNCH_ALLOW_TARGETS", "tests")
    trainer = start("glm_omni", algorithm={"_target_": "tests.components.megatron.specs.Likelihood"})
    samples = random_samples("glm_omni")
    losses = [trainer.train(step, samples)["train/loss"] for step in range(6)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.5
    assert trainer.failure() is None


def test_grpo_makes_rewarded_answers_likelier(folders: dict[str, Path], start: Start, tmp_path: Path) -> None:
    trainer = start("glm_omni")
    for step in range(3):
        trainer.train(step, random_samples("glm_omni"))
    trainer.save_hf(str(tmp_path / "saved"))

    def margin(folder: Path) -> float:
        samples = with_reference_logprobs(hf_model(folder, "glm_omni"), random_samples("glm_omni"), 1.0)
        counted = [float(np.dot(sample.logprobs, sample.loss_mask)) for sample in samples]
        return sum((2 * sample.reward - 1) * value for sample, value in zip(samples, counted, strict=True))

    assert margin(tmp_path / "saved") > margin(folders["glm_omni"]) + 0.5


def test_minibatches_move_away_from_the_old_policy(start: Start) -> None:
    metrics = start("qwen3", num_minibatches=4).train(0, random_samples("qwen3"))
    assert metrics["train/ppo_kl"] != 0.0


@pytest.mark.parametrize("name", ["qwen3-odd", "glm_omni-odd"])
def test_save_gives_the_checkpoint_back_bit_for_bit(
    name: str, folders: dict[str, Path], start: Start, tmp_path: Path
) -> None:
    start(name).save_hf(str(tmp_path / "saved"))
    before, after = (load_file(folder / "model.safetensors") for folder in (folders[name], tmp_path / "saved"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert (tmp_path / "saved" / "config.json").read_text() == (folders[name] / "config.json").read_text()


@pytest.mark.parametrize("name", ["qwen3-odd", "glm_omni"])
def test_a_saved_checkpoint_loads_in_transformers_as_trained(name: str, start: Start, tmp_path: Path) -> None:
    family = name.partition("-")[0]
    trainer = start(name)
    trainer.train(0, random_samples(family))
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "stale").touch()
    trainer.save_hf(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / "stale").exists() and len(list(tmp_path.iterdir())) == 1
    model = hf_model(tmp_path / "saved", family)
    samples = with_reference_logprobs(model, random_samples(family, seed=5), temperature=1.0)
    assert trainer.train(1, samples)["train/train_rollout_logprob_abs_diff/max"] < 1e-4


def test_sync_sends_the_decoder_in_buckets_and_the_version_last(folders: dict[str, Path], start: Start) -> None:
    sink = MemorySink()
    assert isinstance(sink, WeightSink)
    trainer = start("glm_omni", {"weight_sink": [sink]}, bucket_mb=0.25)
    metrics = trainer.sync(7)
    assert sink.calls == ["connect", "begin", *["send"] * len(sink.versions), "end"]
    assert sink.versions[-1] == 7 and set(sink.versions[:-1]) == {None}
    assert len(sink.sizes) > 2 and max(sink.sizes) <= 0.25 * 2**20
    stored = load_file(folders["glm_omni"] / "model.safetensors")
    assert sink.weights.keys() == {name for name in stored if not name.startswith("model.visual.")}
    assert all(torch.equal(tensor, stored[name]) for name, tensor in sink.weights.items())
    assert metrics["perf/update_weights_time"] > 0 and metrics["perf/update_weights_mb_per_s"] > 0
    trainer.stop()
    assert sink.calls[-1] == "close"


def test_the_tower_and_frozen_parameters_stay(folders: dict[str, Path], start: Start, tmp_path: Path) -> None:
    trainer = start("glm_omni", freeze=[r"^encoders\.vision\.", r"layers\.1\.mlp\."])
    trainer.train(0, random_samples("glm_omni"))
    trainer.save_hf(str(tmp_path / "saved"))
    before, after = (load_file(folder / "model.safetensors") for folder in (folders["glm_omni"], tmp_path / "saved"))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith("model.visual.") or ".layers.1.mlp." in name}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"freeze": ["no_such_thing"]}, "no_such_thing"),
        ({"freeze": ["."]}, "nothing is left to train"),
        ({"transformer": {"no_such_field": 1}}, "no_such_field"),
        ({"sp": True}, "sequence-parallel"),
        ({"precision": "bfloat16"}, "weights train in float32"),
        ({"transformer": {"bf16": True}}, "set trainer.precision"),
        ({"family": "glm_omni"}, "architectures"),
        ({"optim": OPTIM | {"schedule": "step"}}, "schedule"),
        ({"optim": {"lr": 1.0}}, "missing"),
        ({"world_size": 3, "tp": 2}, "no multiple"),
        ({"rendezvous": "127.0.0.1:1"}, "tcp://"),
        ({"hf_checkpoint": "/nowhere"}, "config.json"),
    ],
)
def test_wrong_settings_say_what_is_wrong(
    overrides: dict[str, Any], message: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIME_LAUNCH_ALLOW_TARGETS", "tests")
    with pytest.raises(ComponentError, match=message):
        start("qwen3", **overrides)


def test_missing_and_extra_names_are_listed_at_once(folders: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(folders["qwen3"] / "model.safetensors")
    tensors["model.extra.weight"] = tensors.pop("model.layers.1.self_attn.q_norm.weight")
    tensors["model.more.weight"] = tensors.pop("model.norm.weight")
    (tmp_path / "config.json").write_text((folders["qwen3"] / "config.json").read_text())
    save_file(tensors, tmp_path / "model.safetensors")
    trainer = MegatronTrainer(**trainer_settings(tmp_path, "qwen3"))
    with pytest.raises(ComponentError) as caught:
        trainer.start({})
    trainer.stop()
    for name in ("model.extra.weight", "model.more.weight", "layers.1.self_attn.q_norm.weight", "model.norm.weight"):
        assert name in str(caught.value)


def test_a_second_name_of_tied_weights_is_kept(folders: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(folders["qwen3-odd"] / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "config.json").write_text((folders["qwen3-odd"] / "config.json").read_text())
    save_file(tensors, tmp_path / "in" / "model.safetensors")
    trainer = MegatronTrainer(**trainer_settings(tmp_path / "in", "qwen3"))
    trainer.start({})
    trainer.save_hf(str(tmp_path / "out"))
    trainer.stop()
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert saved.keys() == tensors.keys() and all(torch.equal(saved[name], tensors[name]) for name in tensors)


def spoil_lengths(sample: Sample) -> None:
    sample.logprobs = sample.logprobs[:-1]


def spoil_logprobs(sample: Sample) -> None:
    sample.logprobs[0] = math.nan


def spoil_media(sample: Sample) -> None:
    sample.media = {"audio_features": np.zeros(3)}


def spoil_reward(sample: Sample) -> None:
    sample.reward = math.nan


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_lengths, "lengths differ"),
        (spoil_logprobs, "finite"),
        (spoil_media, "audio_features"),
        (spoil_reward, "loss"),
    ],
)
def test_spoilt_samples_change_nothing(
    spoil: Callable[[Sample], None], message: str, folders: dict[str, Path], start: Start, tmp_path: Path
) -> None:
    trainer = start("qwen3")
    samples = random_samples("qwen3")
    spoil(samples[3])
    with pytest.raises(LaunchError, match=message):
        trainer.train(0, samples)
    trainer.save_hf(str(tmp_path / "saved"))
    before, after = (load_file(folder / "model.safetensors") for folder in (folders["qwen3"], tmp_path / "saved"))
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("num_minibatches", [1, 2])
def test_a_gap_above_the_bound_stops_before_the_update(
    num_minibatches: int, folders: dict[str, Path], start: Start, tmp_path: Path
) -> None:
    trainer = start("qwen3", max_logprob_gap=0.01, num_minibatches=num_minibatches)
    with pytest.raises(LogprobGapError, match=r"differ by [0-9.]+ .*0\.01"):
        trainer.train(0, random_samples("qwen3"))
    assert trainer.failure()
    trainer.save_hf(str(tmp_path / "saved"))
    before, after = (load_file(folder / "model.safetensors") for folder in (folders["qwen3"], tmp_path / "saved"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_wrong_media_for_the_placeholders(start: Start) -> None:
    samples = random_samples("glm_omni")
    samples[0].prompt_ids = [token for token in samples[0].prompt_ids if token != 14]
    with pytest.raises(ComponentError, match="placeholders"):
        start("glm_omni").train(0, samples)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"schedule": "constant"}, [0.5, 1.0, 1.0, 1.0]),
        ({"schedule": "linear", "min_lr": 0.2}, [0.5, 1.0, 0.6, 0.2]),
        ({"schedule": "cosine"}, [0.5, 1.0, 0.5, 0.0]),
    ],
)
def test_learning_rates(schedule: dict[str, Any], expected: list[float], start: Start) -> None:
    scaled = {name: value * 1e-4 if name == "min_lr" else value for name, value in schedule.items()}
    trainer = start("qwen3", num_steps=4, optim=OPTIM | {"lr": 1e-4, "warmup_steps": 2} | scaled)
    rates = [trainer.train(step, random_samples("qwen3"))["train/lr-pg_0"] for step in range(4)]
    assert rates == pytest.approx([1e-4 * share for share in expected])


def test_calls_before_start_are_refused() -> None:
    trainer = MegatronTrainer(**trainer_settings(Path("/nowhere"), "qwen3"))
    with pytest.raises(ComponentError, match="start"):
        trainer.train(0, random_samples("qwen3"))
    trainer.stop()


def test_sharing_prompts_changes_nothing_but_time(folders: dict[str, Path], start: Start, tmp_path: Path) -> None:
    from dataclasses import replace

    metrics = []
    for share in (True, False):
        trainer = start("glm_omni", micro_batch_size=16)
        parts = trainer._ready()
        assert parts.batcher.bounds.share
        batcher = replace(parts.batcher, bounds=replace(parts.batcher.bounds, share=share))
        trainer._parts = replace(parts, batcher=batcher)
        metrics.append(trainer.train(0, random_samples("glm_omni", groups=3)))
        trainer.stop()
    del metrics[0]["perf/train_time"], metrics[1]["perf/train_time"]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-5, abs=1e-6)


def test_banned_tokens_have_no_probability(start: Start, folders: dict[str, Path]) -> None:
    """The gap to an engine that never samples them is nil; to one that may, it is not."""
    banned, gaps = [3, 40, 77], []
    model = hf_model(folders["qwen3"], "qwen3")
    trainer = start("qwen3", banned_tokens=banned, max_logprob_gap=1.0, optim=OPTIM | {"lr": 1e-30})
    for hidden in (banned, []):
        samples = random_samples("qwen3")
        for sample in samples:
            sample.response_ids = [5 if token in banned else token for token in sample.response_ids]
            ids, first = torch.tensor([sample.prompt_ids + sample.response_ids]), len(sample.prompt_ids)
            with torch.no_grad():
                logits_SV = model(ids).logits[0].index_fill(-1, torch.tensor(hidden, dtype=torch.long), -torch.inf)
            logprobs_RV = logits_SV[first - 1 : -1].log_softmax(-1)
            sample.logprobs = logprobs_RV.gather(-1, ids[0, first:, None])[:, 0].tolist()
        gaps.append(trainer.train(1, samples)["train/train_rollout_logprob_abs_diff/max"])
    assert gaps[0] <= 1e-5
    assert gaps[1] > 1e-3
