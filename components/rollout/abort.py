"""The end of everything that engines run: asked for again and again until they say that nothing runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import aiohttp

from slime_launch.errors import ComponentError, DeadlineError
from slime_launch.types import Endpoint

_POLL_S = 0.05
_ASK = aiohttp.ClientTimeout(total=10.0)
_CLEAN_LOOKS = 2  # a request whose connection was closed may still have been on its way when the first abort came


async def end_all(
    http: aiohttp.ClientSession, engines: Sequence[Endpoint], in_flight: Callable[[], int], timeout_s: float
) -> None:
    """Abort all requests of ``engines`` until none runs and none of ours (``in_flight``) is unanswered.

    Repeated, since SGLang aborts only what its scheduler knows, and not what is on its way there. Engines that do not
    answer are gone, and what they ran with them. Raises ComponentError when one refuses, DeadlineError.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    clean = 0
    while clean < _CLEAN_LOOKS:
        counts = await asyncio.gather(*(_end(http, engine) for engine in engines))
        clean = 0 if in_flight() or any(counts) else clean + 1
        if asyncio.get_running_loop().time() > deadline:
            busy = [f"{engine.url} runs {count}" for engine, count in zip(engines, counts, strict=True) if count]
            raise DeadlineError(
                f"requests are still there {timeout_s:.0f} s after they were aborted: {in_flight()} of ours are "
                f"unanswered; {', '.join(busy) or 'no engine runs any'}; see the engines' logs"
            )
        await asyncio.sleep(_POLL_S)


async def _end(http: aiohttp.ClientSession, engine: Endpoint) -> int:
    """Abort all requests of one engine; how many it runs or keeps waiting now, 0 where it is gone."""
    try:
        everything, admin = {"abort_all": True}, bearer(engine.admin_key or engine.key)
        async with http.post(f"{engine.url}/abort_request", json=everything, headers=admin, timeout=_ASK) as reply:
            if reply.status != 200:
                mend = "; if someone else runs it, give its group the admin_key_file" if reply.status == 401 else ""
                raise ComponentError(f"{engine.url} refused to abort its requests: {reply.status}{mend}")
        async with http.get(f"{engine.url}/v1/loads", headers=bearer(engine.key), timeout=_ASK) as reply:
            if reply.status != 200:
                raise ComponentError(f"{engine.url} does not tell what it runs: /v1/loads says {reply.status}")
            loads = (await reply.json())["loads"]
    except TimeoutError:
        return 1  # too busy to answer
    except aiohttp.ClientError:
        return 0
    return sum(int(load["num_running_reqs"]) + int(load["num_waiting_reqs"]) for load in loads)


def bearer(key: str) -> dict[str, str]:
    """The header with a token, if there is one."""
    return {"Authorization": f"Bearer {key}"} if key else {}
