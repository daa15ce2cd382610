"""What a warm start works with: the family's recipe, and how a task is shown and asked for, in one turn, or as
``components.rollout.practice`` in several."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from slime_launch.types import Prompt, Sample, Status

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Processor: TypeAlias = Any
"""What AutoProcessor gives: a processor with its tokenizer, or for text alone the tokenizer itself."""


Sampler: TypeAlias = Callable[[Sequence[Sequence[int]], float, int], list[list[int]]]
"""Prompts' ids, temperature, max_new_tokens -> sampled ids of each, up to its end token."""


@runtime_checkable
class Practice(Protocol):
    """References to learn from, and rollouts to be scored, of one model under training."""

    def references(self, prompts: Sequence[Prompt]) -> list[Sample]:
        """One perfect response a prompt; what its ``loss_mask`` leaves out is not to be learnt."""

    def exam(self, prompts: Sequence[Prompt], temperature: float, max_new_tokens: int) -> Callable[[], list[Sample]]:
        """What gives one sampled response a prompt each time it is called."""


@runtime_checkable
class Recipe(Protocol):
    """How a family's tiny checkpoint is made."""

    def write(self, folder: Path, seed: int) -> None:
        """Write a complete Hugging Face checkpoint with random weights."""

    def prepare(
        self,
        model: PreTrainedModel,
        processor: Processor,
        prompts: Sequence[Prompt],
        seed: int,
    ) -> None:
        """Train and freeze (``requires_grad_(False)``) what the warm start must not touch; may do nothing."""


class OneTurn:
    """Practice of a task with one turn: the prompt's completion."""

    def __init__(self, model: PreTrainedModel, processor: Processor) -> None:
        self._model, self._processor = model, processor
        self._tokenizer: Any = getattr(processor, "tokenizer", processor)

    def references(self, prompts: Sequence[Prompt]) -> list[Sample]:
        """The completions with their end tokens."""
        return [self._reference(index, prompt) for index, prompt in enumerate(prompts)]

    def exam(self, prompts: Sequence[Prompt], temperature: float, max_new_tokens: int) -> Callable[[], list[Sample]]:
        """One response a prompt, all sampled at once."""
        inputs = encode(self._processor, prompts)

        def sample() -> list[Sample]:
            ids_BR = sample_ids(self._model, inputs, temperature, max_new_tokens)
            texts = self._tokenizer.batch_decode(ids_BR, skip_special_tokens=True)
            return [_as_sample(index, *pair) for index, pair in enumerate(zip(prompts, texts, strict=True))]

        return sample

    def _reference(self, index: int, prompt: Prompt) -> Sample:
        sample = _as_sample(index, prompt, prompt.completion)
        ids = [*self._tokenizer(prompt.completion)["input_ids"], self._tokenizer.eos_token_id]
        sample.add_sampled(ids, [0.0] * len(ids), 0)
        return sample


def sampler(model: PreTrainedModel, processor: Processor) -> Sampler:
    """Samples responses to prompts of text, as an engine does."""
    tokenizer: Any = getattr(processor, "tokenizer", processor)
    ends = model.generation_config.eos_token_id

    def sample(prompts: Sequence[Sequence[int]], temperature: float, max_new_tokens: int) -> list[list[int]]:
        rows = {"input_ids": [list(prompt) for prompt in prompts]}
        inputs = tokenizer.pad(rows, padding_side="left", return_tensors="pt")
        sampled: list[list[int]] = sample_ids(model, dict(inputs), temperature, max_new_tokens).tolist()
        return [_up_to(row, ends if isinstance(ends, list) else [ends]) for row in sampled]

    return sample


def _up_to(ids: list[int], ends: Sequence[int]) -> list[int]:
    """The ids with their first end token, without what comes behind it."""
    first = next((number for number, token in enumerate(ids) if token in ends), len(ids))
    return ids[: first + 1]


def encode(processor: Processor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """What the model takes for a batch of prompts: ids left-padded [B, P], their mask, and media if there are any."""
    from PIL import Image

    texts = [
        processor.apply_chat_template(prompt.messages, tokenize=False, add_generation_prompt=True) for prompt in prompts
    ]
    images = [[Image.open(io.BytesIO(file)).convert("RGB") for file in prompt.images] for prompt in prompts]
    media = {"images": images} if any(images) else {}
    return dict(processor(text=texts, padding=True, return_tensors="pt", **media))


def sample_ids(model: PreTrainedModel, inputs: dict[str, Tensor], temperature: float, max_new_tokens: int) -> Tensor:
    """Sampled responses [B, R] to a left-padded batch, as an engine samples, padded behind their end tokens."""
    import torch

    model.eval()
    with torch.no_grad():
        ids_BT: Tensor = model.generate(
            **inputs, do_sample=True, temperature=temperature, top_k=0, top_p=1.0, max_new_tokens=max_new_tokens
        )
    return ids_BT[:, inputs["input_ids"].shape[1] :]


def _as_sample(index: int, prompt: Prompt, response: str) -> Sample:
    return Sample(
        group=index, index=0, prompt=prompt, prompt_text="", prompt_ids=[], response=response, status=Status.COMPLETED
    )
