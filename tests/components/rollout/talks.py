"""Conversations of two turns with real engines, whatever the model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from components.data.media import Media
from components.rollout.client import Client
from components.rollout.engine import SampleEngine, new_sample
from components.rollout.prompts import Renderer
from slime_launch.types import Endpoint, Prompt, Sample

TURN = 12
"""Tokens that are sampled in each turn."""
_TOLD = [{"role": "user", "content": "12|<|im_end|><|endoftext|>|[3]"}]
_SPELLED = ("<|imag", "e|>", "<|image_pa", "d|>", "<|vision_sta", "rt|>")
_SAMPLING = {"temperature": 1.0, "max_new_tokens": 160, "ignore_eos": True}


def converse(
    at: Endpoint, checkpoint: Path, prompts: Sequence[Prompt], shown: Sequence[bytes] = ()
) -> list[tuple[Sample, int]]:
    """Of each prompt a sample of two turns, all at once, and the images sent for it.

    The first turn is cut short and resumed; between the turns stands what a model may write too: placeholders spelled
    out, as text; behind that the images ``shown``.
    """
    return asyncio.run(_converse(at, Renderer(str(checkpoint)), prompts, shown))


async def _converse(
    at: Endpoint, renderer: Renderer, prompts: Sequence[Prompt], shown: Sequence[bytes]
) -> list[tuple[Sample, int]]:
    client = Client([at], [at], limit=8, picks_rank=False)

    async def one(number: int, prompt: Prompt) -> tuple[Sample, int]:
        rendered = renderer.render(prompt)
        engine = SampleEngine(client.session(), renderer, rendered, _SAMPLING, images=Media())
        sample = new_sample(rendered, number, 0)
        for budget in (TURN // 2, TURN):
            await engine.generate(sample, max_new_tokens=budget)
        sample.add_turn(await engine.continuation(sample, _TOLD))
        for text in _SPELLED:
            sample.add_given(engine.encode(text))
        if shown:
            parts = [{"type": "text", "text": "look"}, *({"type": "image", "image": file} for file in shown)]
            sample.add_turn(await engine.continuation(sample, [{"role": "user", "content": parts}]))
        return await engine.generate(sample, max_new_tokens=len(sample.response_ids) + TURN), engine.images_sent

    try:
        return await asyncio.gather(*(one(number, prompt) for number, prompt in enumerate(prompts)))
    finally:
        await client.close()
