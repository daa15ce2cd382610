"""Asking a reward server by HTTP, with every answer bounded in time and size and every failure typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from components.rewards.loops import PerLoop
from slime_launch.errors import ComponentError, DeadlineError

_CHUNK = 1 << 16
_SHOWN = 200


class Wire:
    """POSTs JSON and reads JSON. No proxy of the environment, no redirect, no compression.

    timeout_s: of a whole request, however slowly its answer drips in. max_answer_kb: longer answers are refused as
    soon as they are.
    """

    def __init__(self, timeout_s: float, max_answer_kb: int) -> None:
        if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s < float("inf"):
            raise ComponentError(f"timeout_s={timeout_s}: must be a number of seconds above 0")
        if isinstance(max_answer_kb, bool) or not isinstance(max_answer_kb, int) or max_answer_kb < 1:
            raise ComponentError(f"max_answer_kb={max_answer_kb}: must be a whole number above 0")
        self._timeout_s, self._most = timeout_s, max_answer_kb << 10
        self._sessions = PerLoop(self._session)

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            connector=aiohttp.TCPConnector(limit=0),  # who asks bounds how many ask
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,
            trust_env=False,
        )

    async def post(self, url: str, key: str, body: Any) -> Any:
        """The JSON that the server answers with status 200.

        Raises ComponentError for any other answer or none, DeadlineError for one that is late.
        """
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        try:
            data = msgspec.json.encode(body)
        except (TypeError, ValueError) as error:
            raise ComponentError(f"{url}: the sample cannot be sent as JSON: {error}") from None
        try:
            async with self._sessions.get().post(url, data=data, headers=headers, allow_redirects=False) as reply:
                answer = await self._read(reply)
                if reply.status != 200:
                    shown = answer[:_SHOWN].decode(errors="replace")
                    raise ComponentError(f"{url} answered {reply.status}: {shown!r}")
        except TimeoutError:
            raise DeadlineError(f"{url} gave no whole answer within {self._timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise ComponentError(f"{url} cannot be asked: {error!r}") from None
        try:
            return json.loads(answer)
        except (ValueError, RecursionError):
            raise ComponentError(f"{url} answered no JSON: {answer[:_SHOWN].decode(errors='replace')!r}") from None

    async def _read(self, reply: aiohttp.ClientResponse) -> bytes:
        data = bytearray()
        async for chunk in reply.content.iter_chunked(_CHUNK):
            data += chunk
            if len(data) > self._most:
                raise ComponentError(f"{reply.url} answers more than {self._most >> 10} KB; raise max_answer_kb")
        return bytes(data)

    async def close(self) -> None:
        """Close the running loop's connections."""
        if (session := self._sessions.take()) is not None:
            await session.close()


def check_url(url: object) -> str:
    """The URL of a server, if it is one: http or https, a host, no user in it. Raises ComponentError otherwise."""
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
        fine = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        parts, fine = None, False
    if parts is None or not fine or "@" in parts.netloc:
        raise ComponentError(f"url={url}: must be http://host[:port]/path or https://..., without user or password")
    return str(url)


def read_key(file: str | None) -> str:
    """The token in a file; empty without one. Raises ComponentError when it cannot be read or is not one word."""
    if file is None:
        return ""
    try:
        key = Path(file).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ComponentError(f"key_file={file}: cannot be read ({type(error).__name__})") from None
    if len(key.split()) != 1 or not key.isascii():
        raise ComponentError(f"key_file={file}: must hold one token and nothing else")
    return key
