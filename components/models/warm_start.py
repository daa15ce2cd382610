"""Supervised steps until a model, sampled as the rollout samples it, solves its task now and then: a start for RL."""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.models.practice import Practice, Processor, Recipe, encode
from slime_launch.errors import ComponentError
from slime_launch.interfaces import SingleReward
from slime_launch.types import Prompt, Sample

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from slime_launch.interfaces import DataSource, Reward

BANNED_MASS = 1e-7
"""Probability of all banned tokens together that the warm start aims below."""
GRAD_CLIP = 1.0
MIN_LR_SHARE = 1 / 64


@dataclass(frozen=True, slots=True)
class Lesson:
    """How the warm start learns and when it stops.

    temperature, max_new_tokens: as the rollout samples.
    score_low, score_high: the band of the mean reward over ``num_scored`` training prompts, one sample each.
    num_prepared: training prompts given to the recipe's ``prepare``.
    ban_weight: weight of the loss that keeps the checkpoint's ``suppress_tokens`` (media tokens) improbable.
    """

    temperature: float = 1.0
    max_new_tokens: int = 8
    score_low: float = 0.39
    score_high: float = 0.46
    num_scored: int = 512
    num_prepared: int = 1500
    check_every: int = 4
    max_steps: int = 600
    batch_size: int = 32
    lr: float = 1e-3
    warmup_steps: int = 10
    ban_weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.score_low < self.score_high <= 1:
            raise ComponentError(
                f"tiny checkpoint: band {self.score_low} to {self.score_high}: needs 0 < score_low < score_high <= 1"
            )


@dataclass(frozen=True, slots=True)
class Outcome:
    """steps: supervised steps taken. score: mean reward at the end."""

    steps: int
    score: float


def warm_start(
    recipe: Recipe,
    model: PreTrainedModel,
    processor: Processor,
    practice: Practice,
    source: DataSource,
    reward: Reward | SingleReward,
    lesson: Lesson,
    seed: int,
) -> Outcome:
    """Prepare the model, then train it on the source's references until its sampled score is within the band.

    A stretch of steps that jumps over the band is taken back and tried again at half the learning rate.
    Raises ComponentError when ``max_steps`` do not bring it there.
    """
    recipe.prepare(model, processor, source.take(lesson.num_prepared), seed)
    exam = practice.exam(source.take(lesson.num_scored), lesson.temperature, lesson.max_new_tokens)
    pupil = _Pupil(model, processor, practice, lesson)
    score = 0.0
    while pupil.steps < lesson.max_steps and pupil.lr > lesson.lr * MIN_LR_SHARE:
        before = pupil.snapshot()
        for _ in range(lesson.check_every):
            loss = pupil.learn(source.take(lesson.batch_size))
        scores = asyncio.run(_scores(reward, exam()))
        score = sum(scores) / len(scores)
        print(f"warm start: step {pupil.steps}, loss {loss:.3f}, score {score:.3f}", flush=True)
        if score > lesson.score_high:
            pupil.restore(before)
        elif score >= lesson.score_low:
            return Outcome(pupil.steps, score)
    raise ComponentError(
        f"tiny checkpoint: score {score:.3f} after {pupil.steps} steps, not in "
        f"{lesson.score_low} to {lesson.score_high}; raise max_steps, change lr, widen the band or take an easier task"
    )


class _Pupil:
    """The trainable weights with their optimizer."""

    def __init__(self, model: PreTrainedModel, processor: Processor, practice: Practice, lesson: Lesson) -> None:
        import torch

        self._model, self._processor, self._practice, self._lesson = model, processor, practice, lesson
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        self._adam = torch.optim.Adam(self._weights, lr=lesson.lr)
        self.steps, self.lr = 0, lesson.lr

    def learn(self, prompts: Sequence[Prompt]) -> float:
        """One step on the prompts' references. Returns the loss."""
        import torch

        self.steps += 1
        for group in self._adam.param_groups:
            group["lr"] = self.lr * min(1.0, self.steps / max(1, self._lesson.warmup_steps))
        self._model.train()
        inputs, answers = encode(self._processor, prompts), self._practice.references(prompts)
        loss = _loss(self._model, inputs, answers, self._lesson.ban_weight)
        self._adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._weights, GRAD_CLIP)
        self._adam.step()
        return float(loss.detach())

    def snapshot(self) -> tuple[list[Tensor], dict[str, Any]]:
        return [weight.detach().clone() for weight in self._weights], copy.deepcopy(self._adam.state_dict())

    def restore(self, snapshot: tuple[list[Tensor], dict[str, Any]]) -> None:
        """Back to a snapshot, at half the learning rate."""
        import torch

        with torch.no_grad():
            for weight, kept in zip(self._weights, snapshot[0], strict=True):
                weight.copy_(kept)
        self._adam.load_state_dict(snapshot[1])
        self.lr /= 2


def _loss(model: PreTrainedModel, inputs: dict[str, Tensor], answers: Sequence[Sample], ban_weight: float) -> Tensor:
    """Mean negative logprob of the model's tokens, plus ``ban_weight`` nats each nat above BANNED_MASS."""
    import torch

    answer_BR, there_BR, mask_BR = _pad(answers, int(model.generation_config.pad_token_id))
    inputs = _extend(inputs, answer_BR, there_BR)
    logits_BRV = model(**inputs, use_cache=False, logits_to_keep=answer_BR.shape[1] + 1).logits[:, :-1].float()
    logprobs_BRV = torch.log_softmax(logits_BRV, dim=-1)
    loss_BR = -logprobs_BRV.gather(-1, answer_BR.unsqueeze(-1)).squeeze(-1)
    if banned := model.generation_config.suppress_tokens:
        loss_BR = loss_BR + ban_weight * torch.relu(logprobs_BRV[..., banned].logsumexp(-1) - math.log(BANNED_MASS))
    return (loss_BR * mask_BR).sum() / mask_BR.sum()


def _pad(answers: Sequence[Sample], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Answers right-padded [B, R], where they have tokens [B, R], and which of those the model writes [B, R]."""
    import torch

    longest = max(len(answer.response_ids) for answer in answers)
    fill = [longest - len(answer.response_ids) for answer in answers]
    ids = [answer.response_ids + [pad] * count for answer, count in zip(answers, fill, strict=True)]
    there = [[1] * (longest - count) + [0] * count for count in fill]
    mask = [answer.loss_mask + [0] * count for answer, count in zip(answers, fill, strict=True)]
    return torch.tensor(ids), torch.tensor(there), torch.tensor(mask)


def _extend(inputs: dict[str, Tensor], answer_BR: Tensor, there_BR: Tensor) -> dict[str, Tensor]:
    """The prompts followed by their answers; what else runs along the ids (token types) counts answers as 0."""
    import torch

    along = {name for name, value in inputs.items() if value.shape == inputs["input_ids"].shape}
    tail = {"input_ids": answer_BR, "attention_mask": there_BR}
    zeros = torch.zeros_like(answer_BR)
    return {
        name: torch.cat((value, tail.get(name, zeros)), dim=1) if name in along else value
        for name, value in inputs.items()
    }


async def _scores(reward: Reward | SingleReward, samples: Sequence[Sample]) -> list[float]:
    if isinstance(reward, SingleReward):
        return list(await asyncio.gather(*map(reward.score_one, samples)))
    return await reward.score(samples)
