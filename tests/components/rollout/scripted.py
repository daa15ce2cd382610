"""Engines without servers: a session that answers what the test says, and checkpoints to render with."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from PIL import Image

from components.rollout.engine import SampleEngine, new_sample
from components.rollout.prompts import Renderer
from slime_launch.interfaces import Images
from slime_launch.types import Prompt, Sample

T = TypeVar("T")
Turn = Sequence[int] | Mapping[str, Any]
"""The ids that an engine samples, or entries of its ``meta_info`` over those of a good answer."""


class Script:
    """A session that gives the next turn at each request, and keeps the requests."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self.turns = list(turns)
        self.bodies: list[Mapping[str, Any]] = []

    async def generate(self, body: Mapping[str, Any], read: Callable[[dict[str, Any]], T]) -> T:
        self.bodies.append(body)
        turn = self.turns.pop(0)
        own = turn if isinstance(turn, Mapping) else {"ids": turn}
        ids = list(own.get("ids", []))
        meta: dict[str, Any] = {
            "prompt_tokens": len(body["input_ids"]) + sum(map(_expands, body.get("image_data", ()))),
            "completion_tokens": len(ids),
            "output_token_logprobs": [[-0.5 - 0.25 * number, token, None] for number, token in enumerate(ids)],
            "finish_reason": {"type": "stop"},
            "weight_version": "3",
        }
        return read({"meta_info": meta | {name: value for name, value in own.items() if name != "ids"}})


def _expands(uri: str) -> int:
    """Tokens that the engine puts in for an image beside its placeholder: one each 28 x 28 pixels, rounded."""
    width, height = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size
    return round(width / 28) * round(height / 28) - 1


def begin(
    renderer: Renderer, prompt: Prompt, turns: Sequence[Turn], max_new_tokens: int = 1000, images: Images | None = None
) -> tuple[SampleEngine, Sample, Script]:
    """An engine, a sample that has not begun, and the session behind them."""
    rendered = renderer.render(prompt)
    script = Script(turns)
    sampling = {"temperature": 1.0, "max_new_tokens": max_new_tokens}
    engine = SampleEngine(script, renderer, rendered, sampling, images=images)
    return engine, new_sample(rendered, 4, 2), script


def ask(text: str, images: Sequence[bytes] = (), **fields: Any) -> Prompt:
    """A prompt of one user message, its images first."""
    content: Any = [*({"type": "image"} for _ in images), {"type": "text", "text": text}] if images else text
    return Prompt([{"role": "user", "content": content}], "", tuple(images), **fields)
