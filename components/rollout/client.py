"""The engines' HTTP client: one request a sample, so many at a time."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from slime_launch.errors import ComponentError
from slime_launch.types import Endpoint


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

    def session(self) -> Session:
        """One conversation."""
        return Session(self)

    async def generate(self, body: dict[str, Any]) -> dict[str, Any]:
        """One request; the engine's answer as it came."""
        async with self._slots:
            return await self._post(body)

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


class Session:
    """The requests of one sample: they all go to the engine that took the first."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def generate(self, body: dict[str, Any]) -> dict[str, Any]:
        """One request; the engine's answer as it came.

        Raises ComponentError when there is none.
        """
        return await self._client.generate(body)
