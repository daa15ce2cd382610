"""The engines' HTTP client: one request a sample, so many at a time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import aiohttp

from components.rollout.prompts import Rendered
from slime_launch.errors import ComponentError
from slime_launch.types import Endpoint, Status

_STATUS = {"stop": Status.COMPLETED, "length": Status.TRUNCATED, "abort": Status.ABORTED}


@dataclass(frozen=True)
class Generation:
    """What an engine answered; ids and logprobs (natural log) have the same length."""

    ids: list[int]
    logprobs: list[float]
    status: Status
    weight_version: int


class Client:
    """Talks to the router. Raises ComponentError for whatever is not a whole, consistent answer.

    aiohttp, since httpx's pool walks over all its connections at each request and took most of a rollout's time at 128.
    """

    def __init__(self, endpoint: Endpoint, max_concurrency: int, timeout_s: float) -> None:
        self._url = endpoint.url + "/generate"
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(max_concurrency)
        self._http = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {},
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            connector=aiohttp.TCPConnector(limit=max_concurrency),
            trust_env=False,
        )

    async def generate(self, prompt: Rendered, sampling: dict[str, Any]) -> Generation:
        """One sample. ``sampling`` is SGLang's sampling_params."""
        body: dict[str, Any] = {"sampling_params": sampling, "return_logprob": True}
        # images go with text: the engine expands the placeholders itself, and the lengths are compared afterwards
        if prompt.image_data:
            body |= {"text": prompt.text, "image_data": prompt.image_data}
        else:
            body["input_ids"] = prompt.ids
        async with self._slots:
            return _parse(await self._post(body), prompt)

    async def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        try:
            async with self._http.post(self._url, json=body) as reply:
                if reply.status != 200:
                    raise ComponentError(f"the engine refused a request: {reply.status} {(await reply.text())[:500]}")
                answer: dict[str, Any] = await reply.json()
                return answer
        except TimeoutError:
            late = f"no answer from the engine within {self._timeout_s:.0f} s"
            raise ComponentError(f"{late}; raise rollout.request_timeout_s or see its log") from None
        except aiohttp.ClientError as error:
            raise ComponentError(f"the router does not answer: {error!r}") from None

    async def close(self) -> None:
        """Close every connection."""
        await self._http.close()


def _parse(answer: dict[str, Any], prompt: Rendered) -> Generation:
    meta = answer["meta_info"]
    counted = meta["prompt_tokens"]
    if counted != len(prompt.ids):
        raise ComponentError(
            f"the engine counts {counted} prompt tokens and the trainer {len(prompt.ids)}: "
            f"tokenizer or image processor differ; prompt {prompt.text!r}"
        )
    pairs = meta["output_token_logprobs"]
    if len(pairs) != meta["completion_tokens"]:
        raise ComponentError(f"the engine made {meta['completion_tokens']} tokens and sent {len(pairs)} logprobs")
    return Generation(
        ids=[int(pair[1]) for pair in pairs],
        logprobs=[float(pair[0]) for pair in pairs],
        status=_STATUS.get(meta["finish_reason"]["type"], Status.ABORTED),
        weight_version=int(meta["weight_version"]),
    )
