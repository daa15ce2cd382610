"""Answers of servers that nobody here vouches for, bounded in size and time."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import httpx


class Bounded(httpx.AsyncHTTPTransport):
    """Answers as they come. most_bytes: of one. timeout_s: of one from its first byte on, however slowly it drips in.

    Raises httpx's errors for longer and later ones, and for those that are compressed, whose real size is not known.
    """

    def __init__(self, most_bytes: int, timeout_s: float) -> None:
        super().__init__(trust_env=False)
        self._most_bytes, self._timeout_s = most_bytes, timeout_s

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        reply = await super().handle_async_request(request)
        assert isinstance(reply.stream, httpx.AsyncByteStream)
        reply.stream = _Body(reply.stream, self._most_bytes, time.monotonic() + self._timeout_s)
        if reply.headers.get("Content-Encoding", "identity") != "identity":
            await reply.aclose()
            raise httpx.DecodingError("the answer is compressed, which was not asked for", request=request)
        return reply


class _Body(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream, most_bytes: int, until: float) -> None:
        self._stream, self._most_bytes, self._until = stream, most_bytes, until

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = 0
        async for chunk in self._stream:
            read += len(chunk)
            if read > self._most_bytes:
                raise httpx.ReadError(f"the answer is longer than {self._most_bytes} bytes")
            if time.monotonic() > self._until:
                raise httpx.ReadTimeout("the answer goes on and on")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()
