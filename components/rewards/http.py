"""A score from a server that someone else runs."""

from __future__ import annotations

import base64
import math
from typing import Any

from components.rewards.wire import Wire, check_url, read_key
from slime_launch.errors import ComponentError
from slime_launch.types import Sample


class Http:
    """Asks ``url`` for each sample's score: POST of one JSON object, answered with ``{"score": number}``.

    The object: prompt (text), messages, response, label, source, status, metadata, group, index, and with ``images``
    the prompt's image files in base64. Further keys of the answer are left alone.

    timeout_s: of one request. max_answer_kb: of one answer. key_file: file with a bearer token.
    How often it asks again, how many requests at once and what becomes of a sample that gets no score is the mixer's:
    ``on_error``, ``reward.mix.concurrency``.
    """

    def __init__(
        self,
        url: str,
        key_file: str | None = None,
        timeout_s: float = 30.0,
        max_answer_kb: int = 64,
        images: bool = False,
    ) -> None:
        self._url, self._key, self._images = check_url(url), read_key(key_file), images
        self._wire = Wire(timeout_s, max_answer_kb)

    async def score_one(self, sample: Sample) -> float:
        """Its score.

        Raises ComponentError, or DeadlineError, for anything but a finite number.
        """
        answer = await self._wire.post(self._url, self._key, self._body(sample))
        score = answer.get("score") if isinstance(answer, dict) else None
        if isinstance(score, bool) or not isinstance(score, int | float) or not _finite(score):
            raise ComponentError(f'{self._url} answered {answer!r:.200}, not {{"score": number}}')
        return float(score)

    async def close(self) -> None:
        """Close the connections."""
        await self._wire.close()

    def _body(self, sample: Sample) -> dict[str, Any]:
        prompt = sample.prompt
        body = {
            "prompt": sample.prompt_text, "messages": prompt.messages, "response": sample.response,
            "label": prompt.label, "source": prompt.source, "status": str(sample.status), "metadata": prompt.metadata,
            "group": sample.group, "index": sample.index,
        }  # fmt: skip
        if self._images:
            body["images"] = [base64.b64encode(image).decode() for image in prompt.images]
        return body


def _finite(score: float) -> bool:
    try:
        return math.isfinite(score)
    except OverflowError:  # an integer that no float holds
        return False
