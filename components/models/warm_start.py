"""Supervised steps until a model, sampled as the rollout samples it, solves its task now and then: a start for RL."""

from __future__ import annotations

import asyncio
import copy
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from slime_launch.errors import ComponentError
from slime_launch.types import Prompt, Sample, Status

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from components.models.tiny import Recipe
    from slime_launch.interfaces import DataSource, Reward

Processor: TypeAlias = Any
"""What AutoProcessor gives: a processor with its tokenizer, or for text alone the tokenizer itself."""

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
    source: DataSource,
    reward: Reward,
    lesson: Lesson,
    seed: int,
) -> Outcome:
    """Prepare the model, then train it on the source's completions until its sampled score is within the band.

    A stretch of steps that jumps over the band is taken back and tried again at half the learning rate.
    Raises ComponentError when ``max_steps`` do not bring it there.
    """
    recipe.prepare(model, processor, source.take(lesson.num_prepared), seed)
    exam = _Exam(model, processor, source.take(lesson.num_scored), reward, lesson)
    pupil = _Pupil(model, processor, lesson)
    score = 0.0
    while pupil.steps < lesson.max_steps and pupil.lr > lesson.lr * MIN_LR_SHARE:
        before = pupil.snapshot()
        for _ in range(lesson.check_every):
            loss = pupil.learn(source.take(lesson.batch_size))
        score = exam.score()
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

    def __init__(self, model: PreTrainedModel, processor: Processor, lesson: Lesson) -> None:
        import torch

        self._model, self._processor, self._lesson = model, processor, lesson
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        self._adam = torch.optim.Adam(self._weights, lr=lesson.lr)
        self.steps, self.lr = 0, lesson.lr

    def learn(self, prompts: Sequence[Prompt]) -> float:
        """One step on the prompts' completions. Returns the loss."""
        import torch

        self.steps += 1
        for group in self._adam.param_groups:
            group["lr"] = self.lr * min(1.0, self.steps / max(1, self._lesson.warmup_steps))
        self._model.train()
        loss = _loss(self._model, self._processor, prompts, self._lesson.ban_weight)
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


def encode(processor: Processor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """What the model takes for a batch of prompts: ids left-padded [B, P], their mask, and media if there are any."""
    from PIL import Image

    texts = [
        processor.apply_chat_template(prompt.messages, tokenize=False, add_generation_prompt=True) for prompt in prompts
    ]
    images = [[Image.open(io.BytesIO(file)).convert("RGB") for file in prompt.images] for prompt in prompts]
    media = {"images": images} if any(images) else {}
    return dict(processor(text=texts, padding=True, return_tensors="pt", **media))


def _loss(model: PreTrainedModel, processor: Processor, prompts: Sequence[Prompt], ban_weight: float) -> Tensor:
    """Mean negative logprob of the completions' tokens, plus ``ban_weight`` nats each nat above BANNED_MASS."""
    import torch

    inputs = encode(processor, prompts)
    answer_BR, mask_BR = _answers(processor, prompts)
    num_answer = answer_BR.shape[1]
    inputs = _extend(inputs, answer_BR, mask_BR)
    logits_BRV = model(**inputs, use_cache=False, logits_to_keep=num_answer + 1).logits[:, :-1].float()
    logprobs_BRV = torch.log_softmax(logits_BRV, dim=-1)
    loss_BR = -logprobs_BRV.gather(-1, answer_BR.unsqueeze(-1)).squeeze(-1)
    if banned := model.generation_config.suppress_tokens:
        loss_BR = loss_BR + ban_weight * torch.relu(logprobs_BRV[..., banned].logsumexp(-1) - math.log(BANNED_MASS))
    return (loss_BR * mask_BR).sum() / mask_BR.sum()


def _answers(processor: Processor, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
    """Completions with their end token, right-padded [B, R], and their mask [B, R]."""
    import torch

    tokenizer: Any = getattr(processor, "tokenizer", processor)
    rows = [[*tokenizer(prompt.completion)["input_ids"], tokenizer.eos_token_id] for prompt in prompts]
    longest = max(map(len, rows))
    ids = [row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


def _extend(inputs: dict[str, Tensor], answer_BR: Tensor, mask_BR: Tensor) -> dict[str, Tensor]:
    """The prompts followed by their answers; what else runs along the ids (token types) counts answers as 0."""
    import torch

    along = {name for name, value in inputs.items() if value.shape == inputs["input_ids"].shape}
    tail = {"input_ids": answer_BR, "attention_mask": mask_BR}
    zeros = torch.zeros_like(answer_BR)
    return {
        name: torch.cat((value, tail.get(name, zeros)), dim=1) if name in along else value
        for name, value in inputs.items()
    }


class _Exam:
    """The same prompts again and again, sampled as the rollout samples them."""

    def __init__(
        self, model: PreTrainedModel, processor: Processor, prompts: Sequence[Prompt], reward: Reward, lesson: Lesson
    ) -> None:
        self._model = model
        self._tokenizer: Any = getattr(processor, "tokenizer", processor)
        self._prompts, self._reward, self._lesson = prompts, reward, lesson
        self._inputs = encode(processor, prompts)

    def score(self) -> float:
        """Mean reward of one sample a prompt."""
        pairs = enumerate(zip(self._prompts, self._sample(), strict=True))
        samples = [_as_sample(index, prompt, text) for index, (prompt, text) in pairs]
        scores = asyncio.run(_scores(self._reward, samples))
        return sum(scores) / len(scores)

    def _sample(self) -> list[str]:
        """One response a prompt, as text without special tokens."""
        import torch

        self._model.eval()
        with torch.no_grad():
            ids_BT = self._model.generate(
                **self._inputs,
                do_sample=True,
                temperature=self._lesson.temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=self._lesson.max_new_tokens,
            )
        answers_BR = ids_BT[:, self._inputs["input_ids"].shape[1] :]
        texts: list[str] = self._tokenizer.batch_decode(answers_BR, skip_special_tokens=True)
        return texts


async def _scores(reward: Reward, samples: Sequence[Sample]) -> list[float]:
    return await reward.score(samples)


def _as_sample(index: int, prompt: Prompt, response: str) -> Sample:
    return Sample(
        group=index,
        index=0,
        prompt=prompt,
        prompt_text="",
        prompt_ids=[],
        response=response,
        status=Status.COMPLETED,
    )
