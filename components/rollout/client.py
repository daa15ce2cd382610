"""The engines' HTTP client: who takes a request, so many at a time, and how all of them are ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from uuid import uuid4

import aiohttp
import msgspec

from components.rollout.abort import bearer, end_all
from components.rollout.answers import BadAnswer
from components.rollout.balance import Slot, Slots
from components.rollout.refusals import Refusals
from slime_launch.errors import ComponentError
from slime_launch.interfaces import Needs
from slime_launch.schema import ACTOR
from slime_launch.types import Endpoint

_KEEPALIVE_S = 3.0  # SGLang closes idle connections after 5 s unless told otherwise
_AFFINITY_HEADER = "X-SMG-Routing-Key"  # what sglang-router's consistent_hashing policy hashes
_BAD_REQUEST = (400, 413, 422)
_JSON = {"Content-Type": "application/json"}
_GENERATES = ("engine_url", "decode_url")
_ENGINES = (*_GENERATES, "prefill_url")
_ATTEMPTS = 3
"""How often a request is made whose answers do not hold together."""
T = TypeVar("T")


class Refused(ComponentError):
    """This request gets no answer, whoever is asked: say, a prompt that is too long for the engines."""


class _Ended(Exception):
    """The request is no longer wanted."""


class Client:
    """Sends the actor's requests; every engine runs ``max_concurrency`` of them at most.

    targets: where requests go: each engine that generates, or the one router. engines: all of them, to be aborted.
    limit: requests in flight at each target. picks_rank: name the data-parallel rank in each request; else whoever
    takes it decides. affinity: send each conversation's own routing key. timeout_s: longest wait for an answer.
    max_refused: answers of one target that may be refused between two calls of ``refusals.take``.
    seed: of the draws among equally loaded targets.

    aiohttp, since httpx's pool walks over all its connections
    at each request and took most of a rollout's time at 128.
    """

    def __init__(
        self,
        targets: Sequence[Endpoint],
        engines: Sequence[Endpoint],
        *,
        limit: int,
        picks_rank: bool,
        affinity: bool = False,
        timeout_s: float = 120.0,
        max_refused: int = 8,
        seed: int = 0,
    ) -> None:
        self._targets, self._engines = list(targets), list(engines)
        self._picks_rank, self._affinity, self._timeout_s = picks_rank, affinity, timeout_s
        self._epoch = 0
        self.refusals = Refusals(self._targets, max_refused)
        self.slots = Slots([target.dp_size if picks_rank else 1 for target in targets], limit, seed)
        self._http = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S),
            trust_env=False,
        )

    def session(self) -> Session:
        """One conversation."""
        return Session(self)

    async def abort_all(self, timeout_s: float = 60.0) -> None:
        """End whatever the engines run or these sessions wait for, and wait until no engine runs anything.

        The ended requests are answered as ``Session.generate`` says, and so is every later one of a session that was
        there before. Engines that are gone are passed over.

        Raises ComponentError where an engine refuses, DeadlineError with what still runs after ``timeout_s``.
        """
        self._epoch += 1
        self.slots.turn_away(_Ended())
        await end_all(self._http, self._engines, lambda: self.slots.balance.in_flight, timeout_s)

    async def close(self) -> None:
        """Close every connection."""
        await self._http.close()

    async def _post(self, target: Endpoint, body: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
        url, sent = target.url + "/generate", msgspec.json.encode(body)
        try:
            async with self._http.post(url, data=sent, headers={**_JSON, **bearer(target.key), **headers}) as reply:
                content = await reply.read()
                if reply.status != 200:
                    words = content.decode(errors="replace")[:500]
                    kind = Refused if reply.status in _BAD_REQUEST else ComponentError
                    raise kind(f"{target.url} refused a request: {reply.status} {words}")
                return msgspec.json.decode(content, type=dict[str, Any])
        except TimeoutError:
            late = f"no answer from {target.url} within {self._timeout_s:.0f} s"
            raise ComponentError(f"{late}; raise rollout.request_timeout_s or see its log") from None
        except aiohttp.ClientPayloadError as error:
            raise BadAnswer(f"the answer broke off: {error}") from None
        except msgspec.MsgspecError as error:
            raise BadAnswer(f"the answer is no JSON object: {error}") from None
        except aiohttp.ClientError as error:
            raise ComponentError(f"{target.url} does not answer: {error!r}") from None


class Session:
    """The requests of one sample: they all go to the engine and rank that took the first."""

    def __init__(self, client: Client) -> None:
        self._client, self._epoch = client, client._epoch
        self._key = uuid4().hex
        self.slot: Slot | None = None

    async def generate(self, body: Mapping[str, Any], read: Callable[[dict[str, Any]], T]) -> T:
        """What ``read`` makes of the engine's answer to one request.

        An aborted one's finish reason is of type ``abort``, with the tokens so far. One that no engine had begun has
        neither tokens nor ``prompt_tokens``, and one that was never sent says ``sent: false``.

        An answer that breaks off, or that ``read`` raises BadAnswer for, is counted and the request made again, at
        another engine where there is one. Raises Refused when that does not help, ComponentError when there is no
        answer, or the engine has given too many bad ones.
        """
        bad = ""
        for _ in range(_ATTEMPTS):
            try:
                return await self._once(body, read)
            except BadAnswer as error:
                bad = str(error)
        raise Refused(f"no answer of {_ATTEMPTS} held together; the last: {bad}")

    async def _once(self, body: Mapping[str, Any], read: Callable[[dict[str, Any]], T]) -> T:
        client = self._client
        if self._epoch != client._epoch:
            await asyncio.sleep(0)  # a caller that asks on and on can be cancelled here
            return read(_ended())
        try:
            async with client.slots.held(self.slot) as slot:
                self.slot = slot
                try:
                    return read(await self._ask(body, slot))
                except BadAnswer as error:
                    client.refusals.add(slot.engine, error)
                    self._move(slot)
                    raise
        except _Ended:
            return read(_ended())

    async def _ask(self, body: Mapping[str, Any], slot: Slot) -> dict[str, Any]:
        client = self._client
        target = client._targets[slot.engine]
        ranked = client._picks_rank and target.dp_size > 1
        sent = {**body, "routed_dp_rank": slot.rank} if ranked else body
        headers = {_AFFINITY_HEADER: self._key} if client._affinity else {}
        return await client._post(target, sent, headers)

    def _move(self, slot: Slot) -> None:
        """Let this conversation go on at another engine than that of ``slot``, or wherever a router then sends it."""
        self._key = uuid4().hex
        self.slot = self._client.slots.balance.elsewhere(slot)


def connect(
    needs: Needs,
    routing: Mapping[str, Any],
    *,
    max_concurrency: int,
    timeout_s: float,
    seed: int,
    max_refused: int = 8,
) -> Client:
    """The client of a rollout actor; call it inside the loop that will use it.

    needs: the actor's. routing: ``by`` router or direct; ``affinity`` where the router keeps conversations together.
    Raises ComponentError when there is nobody to ask.
    """
    engines = [endpoint for name in _ENGINES for endpoint in needs.get(name, ())]
    generate = [endpoint for name in _GENERATES for endpoint in needs.get(name, ())]
    direct = routing["by"] == "direct"
    targets = generate if direct else [at for at in needs.get("router_url", ()) if at.model == ACTOR]
    if not targets:
        raise ComponentError(f"nobody to generate: rollout.routing={routing['by']}, and no such server came up")
    limit = max_concurrency * (1 if direct else max(1, len(generate)))
    return Client(
        targets, engines, limit=limit, picks_rank=direct, affinity=not direct and bool(routing["affinity"]),
        timeout_s=timeout_s, max_refused=max_refused, seed=seed,
    )  # fmt: skip


def _ended() -> dict[str, Any]:
    meta = {"finish_reason": {"type": "abort"}, "completion_tokens": 0, "output_token_logprobs": [], "sent": False}
    return {"text": "", "output_ids": [], "meta_info": meta}
