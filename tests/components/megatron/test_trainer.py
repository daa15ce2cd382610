"""One rank: logits against transformers, the step, samples that are refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from components.megatron.trainer import MegatronTrainer
from slime_launch.errors import ComponentError, LaunchError, LogprobGapError
from slime_launch.interfaces import Trainer
from slime_launch.types import Sample
from tests.components.megatron.helpers import (
    OPTIM,
    hf_model,
    image_prompt,
    make_sample,
    random_samples,
    reference_logits,
    show_later,
    with_reference_logprobs,
)

Start = Callable[..., MegatronTrainer]


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
    samples = random_samples(family, groups=3)
    if family == "glm_omni":
        show_later(samples)
    with_reference_logprobs(hf_model(folders[name], family), samples, temperature=0.7)
    metrics = start(name, temperature=0.7, max_logprob_gap=1e-3).train(0, samples)
    assert metrics["train/train_rollout_logprob_abs_diff/max"] < 1e-4
    assert 0 < metrics["train/train_rollout_logprob_abs_diff"] <= metrics["train/train_rollout_logprob_abs_diff/max"]


def test_metrics_have_their_names(start: Start) -> None:
    trainer = start("qwen3")
    assert isinstance(trainer, Trainer)
    metrics = trainer.train(0, random_samples("qwen3"))
    gap = "train_rollout_logprob_abs_diff"
    names = ("loss", "grad_norm", "entropy", "ppo_kl", "pg_clipfrac", "lr-pg_0", "skipped_steps", gap, gap + "/max")
    assert set(metrics) == {f"train/{name}" for name in names} | {"perf/train_time"}
    assert metrics["train/ppo_kl"] == metrics["train/pg_clipfrac"] == 0.0
    assert 0 < metrics["train/entropy"] <= math.log(112)


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


def test_a_step_without_a_token_that_counts_moves_nothing(start: Start, tmp_path: Path) -> None:
    """Neither weights nor moments nor the schedule: what follows is as if that minibatch had not been there."""
    optim = OPTIM | {"lr": 1e-3, "schedule": "linear", "weight_decay": 0.1}
    counted, blank = random_samples("qwen3", seed=1)[:4], random_samples("qwen3")[4:]
    for sample in blank:
        sample.loss_mask = [0] * len(sample.response_ids)
    batches = {"with": (2, [*blank, *counted], [*counted, *blank]), "without": (1, counted, counted)}
    metrics = {}
    for name, (num_minibatches, *steps) in batches.items():
        trainer = start("qwen3", optim=optim, num_minibatches=num_minibatches, num_steps=8 // num_minibatches)
        metrics[name] = [trainer.train(step, samples) for step, samples in enumerate(steps)]
        trainer.save_hf(str(tmp_path / name))
        trainer.stop()
    for mine, alone in zip(metrics["with"], metrics["without"], strict=True):
        assert (mine.pop("train/skipped_steps"), alone.pop("train/skipped_steps")) == (1.0, 0.0)
        del mine["perf/train_time"], alone["perf/train_time"]
        assert mine == pytest.approx(alone, rel=1e-5, abs=1e-6)
    mine, alone = (load_file(tmp_path / name / "model.safetensors") for name in batches)
    assert all((mine[name] - alone[name]).abs().max() <= 1e-6 for name in alone)
    with pytest.raises(ComponentError, match="no token of the batch counts"):
        start("qwen3").train(0, blank)


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


def test_older_tokens_are_weighed_by_what_sampled_them(folders: dict[str, Path], start: Start) -> None:
    """Their old policy is the engine's of then; that of the newest weights' tokens is the trainer's own."""
    samples = with_reference_logprobs(hf_model(folders["qwen3"], "qwen3"), random_samples("qwen3"), temperature=1.0)
    for sample in samples:
        sample.weight_versions = [3, *[4] * (len(sample.response_ids) - 1)]
        sample.logprobs[0] -= 0.5
    metrics = start("qwen3").train(5, samples)
    older, tokens = sum(sample.loss_mask[0] for sample in samples), sum(sum(sample.loss_mask) for sample in samples)
    assert metrics["train/ppo_kl"] == pytest.approx(-0.5 * older / tokens, abs=1e-5)
    assert metrics["train/pg_clipfrac"] > 0


def test_only_the_newest_weights_tokens_are_held_against_the_engine(folders: dict[str, Path], start: Start) -> None:
    """A sample that an older engine began has other logprobs where it did; they train, but are no gap."""
    samples = with_reference_logprobs(hf_model(folders["qwen3"], "qwen3"), random_samples("qwen3"), temperature=1.0)
    samples[0].weight_versions = [4] * len(samples[0].response_ids)
    for sample in samples[1:]:
        sample.weight_versions = [3, *[4] * (len(sample.response_ids) - 1)]
        sample.logprobs[0] -= 5.0
    trainer = start("qwen3", num_minibatches=2)
    assert trainer.train(5, samples)["train/train_rollout_logprob_abs_diff/max"] < 1e-4
    assert trainer.train(6, samples)["train/train_rollout_logprob_abs_diff/max"] == 0  # all of them are older
    trainer.stop()
    for sample in samples:
        sample.weight_versions = [4] * len(sample.response_ids)
    with pytest.raises(LogprobGapError):
        start("qwen3", max_logprob_gap=0.1).train(5, samples)


def test_wrong_media_for_the_placeholders(start: Start) -> None:
    samples = random_samples("glm_omni")
    samples[0].prompt_ids = [token for token in samples[0].prompt_ids if token != 14]
    with pytest.raises(ComponentError, match="placeholders"):
        start("glm_omni").train(0, samples)


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
