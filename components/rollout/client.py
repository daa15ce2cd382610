"""The engines' HTTP client: one request a sample, so many at a time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import httpx

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
    """Talks to the router. Raises ComponentError for whatever is not a whole, consistent answer."""

    def __init__(self, endpoint: Endpoint, max_concurrency: int, timeout_s: float) -> None:
        self._slots = asyncio.Semaphore(max_concurrency)
        self._timeout_s = timeout_s
        self._http = httpx.AsyncClient(
            base_url=endpoint.url,
            headers={"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {},
            timeout=httpx.Timeout(timeout_s),
            limits=httpx.Limits(max_connections=max_concurrency, max_keepalive_connections=max_concurrency),
            trust_env=False,
        )

    async def generate(self, prompt: Rendered, sampling: dict[str, Any]) -> Generation:
        """One sample. ``sampling`` is SGLang's sampling_params."""
        body: dict[str, Any] = {"sampling_params": sampling, "return_logprob": True}
        # images go with text: the engine expands the placeholders itself, and the lengths are compared below
        body |= (
            {"text": prompt.text, "image_data": prompt.image_data} if prompt.image_data else {"input_ids": prompt.ids}
        )
        async with self._slots:
            try:
                reply = await self._http.post("/generate", json=body)
            except httpx.TimeoutException:
                raise ComponentError(
                    f"no answer from the engine within {self._timeout_s:.0f} s; raise rollout.request_timeout_s or see its log"
                ) from None
            except httpx.TransportError as error:
                raise ComponentError(f"the router does not answer: {error!r}") from None
        if reply.status_code != 200:
            raise ComponentError(f"the engine refused a request: {reply.status_code} {reply.text[:500]}")
        return _parse(reply.json(), prompt)

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()


def _parse(answer: dict[str, Any], prompt: Rendered) -> Generation:
    meta = answer["meta_info"]
    counted = meta["prompt_tokens"]
    if counted != len(prompt.ids):
        raise ComponentError(
            f"the engine counts {counted} prompt tokens and the trainer {len(prompt.ids)}: tokenizer or image processor differ; prompt {prompt.text!r}"
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
