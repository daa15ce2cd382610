"""Conversations with a model under training, without any server: what a warm start learns from and is examined by."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from components.rollout.engine import SampleEngine, Session, new_sample
from components.rollout.prompts import Renderer
from slime_launch.errors import ComponentError
from slime_launch.interfaces import Generate
from slime_launch.targets import instantiate
from slime_launch.types import Prompt, Sample

Sampler: TypeAlias = Callable[[Sequence[Sequence[int]], float, int], list[list[int]]]
"""Prompts' ids, temperature, max_new_tokens -> sampled ids of each, up to its end token."""
_NO_LIMIT = 1 << 30
T = TypeVar("T")


class Conversations:
    """components.models.practice.Practice of a task in several turns, by the generate function that the run uses.

    generate: its ``_target_`` node. sampler: of the model. hf_checkpoint: folder with the tokenizer. Text prompts only.

    A reference is what comes of that function when the assistant says the prompt's ``turns`` and ``completion``.
    """

    def __init__(self, generate: Mapping[str, Any], sampler: Sampler, hf_checkpoint: str) -> None:
        self._generate: Generate = instantiate(generate)
        self._sampler = sampler
        self._renderer = Renderer(hf_checkpoint)

    def references(self, prompts: Sequence[Prompt]) -> list[Sample]:
        """Whole conversations; what the environment says is not to be learnt."""
        return asyncio.run(self._talk(prompts, [_Recital(self._renderer, prompt) for prompt in prompts], _NO_LIMIT))

    def exam(self, prompts: Sequence[Prompt], temperature: float, max_new_tokens: int) -> Callable[[], list[Sample]]:
        """One conversation a prompt; requests that are made at the same time are sampled together."""

        def sample() -> list[Sample]:
            desk = _Desk(self._sampler, temperature, len(prompts))
            return asyncio.run(self._talk(prompts, [desk] * len(prompts), max_new_tokens, desk.leave))

        return sample

    async def _talk(
        self,
        prompts: Sequence[Prompt],
        sessions: Sequence[Session],
        budget: int,
        done: Callable[[], None] = lambda: None,
    ) -> list[Sample]:
        async def one(number: int, prompt: Prompt, session: Session) -> Sample:
            rendered = self._renderer.render(prompt)
            engine = SampleEngine(session, self._renderer, rendered, {"max_new_tokens": budget})
            try:
                made = await self._generate(new_sample(rendered, number, 0), engine)
            finally:
                done()
            if isinstance(made, list):
                raise ComponentError("tiny checkpoint: a warm start takes generate functions that give one sample")
            return made

        pairs = zip(prompts, sessions, strict=True)
        return await asyncio.gather(*(one(number, *pair) for number, pair in enumerate(pairs)))


class _Recital:
    """A session in which the assistant says what the prompt's reference says."""

    def __init__(self, renderer: Renderer, prompt: Prompt) -> None:
        self._renderer = renderer
        self._turns = iter((*prompt.turns, prompt.completion))
        self._what = prompt

    async def generate(self, body: Mapping[str, Any], read: Callable[[dict[str, Any]], T]) -> T:
        turn = next(self._turns, None)
        if turn is None:
            raise ComponentError(
                f"the reference of {self._what.messages!r:.200} ends with its completion, and its environment goes on"
            )
        ids = [*self._renderer.encode(turn), self._renderer.tokenizer.eos_token_id]
        return read(_answer(body, ids, "stop"))


class _Desk:
    """A session that many conversations share: once all of them wait, their requests are sampled in one batch."""

    def __init__(self, sampler: Sampler, temperature: float, talks: int) -> None:
        self._sampler, self._temperature, self._talks = sampler, temperature, talks
        self._waiting: list[tuple[Mapping[str, Any], asyncio.Future[dict[str, Any]]]] = []

    async def generate(self, body: Mapping[str, Any], read: Callable[[dict[str, Any]], T]) -> T:
        if "image_data" in body:
            raise ComponentError("tiny checkpoint: a warm start in several turns takes conversations of text only")
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append((body, future))
        self._serve()
        return read(await future)

    def leave(self) -> None:
        """One conversation is over."""
        self._talks -= 1
        self._serve()

    def _serve(self) -> None:
        if not self._waiting or len(self._waiting) < self._talks:
            return
        waiting, self._waiting = self._waiting, []
        limits = [body["sampling_params"]["max_new_tokens"] for body, _ in waiting]
        rows = self._sampler([body["input_ids"] for body, _ in waiting], self._temperature, max(limits))
        for (body, future), ids, limit in zip(waiting, rows, limits, strict=True):
            ended = "stop" if len(ids) < max(limits) and len(ids) <= limit else "length"
            if not future.done():
                future.set_result(_answer(body, ids[:limit], ended))


def _answer(body: Mapping[str, Any], ids: list[int], ended: str) -> dict[str, Any]:
    """What SGLang answers; nobody asks for these logprobs."""
    return {
        "meta_info": {
            "prompt_tokens": len(body["input_ids"]),
            "completion_tokens": len(ids),
            "output_token_logprobs": [[0.0, token, None] for token in ids],
            "finish_reason": {"type": ended},
            "weight_version": "0",
        }
    }
