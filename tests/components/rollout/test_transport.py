"""Requests to two real engines of two data-parallel ranks each: who gets them, and that all of them end."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from components.models.qwen3 import tiny
from components.rollout.balance import Balance, Slot
from components.rollout.client import Client, Session, connect
from components.sglang.server import Server
from slime_launch.errors import ComponentError, DeadlineError
from slime_launch.types import Endpoint
from tests.components.sglang.conftest import stopped
from tests.servers import free_port, get, make_server, processes

pytestmark = pytest.mark.servers

T = TypeVar("T")
DIRECT = {"by": "direct", "affinity": False}
REQUESTS = 500
LIMIT = 5


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Server, Endpoint]]:
    folder = tmp_path_factory.mktemp("transport")
    tiny.write_checkpoint(folder / "qwen", 1)
    servers = [
        make_server("regular", folder / "qwen", folder, name=f"engine-{n}", dp_size=2, max_total_tokens=4096)
        for n in range(2)
    ]
    with stopped(*servers), ThreadPoolExecutor() as pool:
        given = pool.map(lambda server: server.start({}), servers)
        yield {server: provided["engine_url"] for server, provided in zip(servers, given, strict=True)}


@pytest.fixture
def engines(servers: dict[Server, Endpoint]) -> list[Endpoint]:
    return list(servers.values())


def body(tokens: int, prompt: int = 8, **sampling: Any) -> dict[str, Any]:
    ids = [20 + n % 60 for n in range(prompt)]
    return {"input_ids": ids, "sampling_params": {"max_new_tokens": tokens, "ignore_eos": True, **sampling}}


def use(engines: list[Endpoint], what: Callable[[Client], Awaitable[T]], **settings: Any) -> T:
    """Run ``what`` with a client of its own."""

    async def run() -> T:
        settings.setdefault("routing", DIRECT)
        given: dict[str, Any] = {"max_concurrency": LIMIT, "timeout_s": 60.0, "seed": 3} | settings
        client = connect({"engine_url": engines, "router_url": given.pop("routers", [])}, given.pop("routing"), **given)
        try:
            return await what(client)
        finally:
            await client.close()

    return asyncio.run(run())


class Watched(Balance[Any]):
    """Keeps what the counts were after each choice that was made while requests waited."""

    def watch(self) -> Watched:
        self.spreads: list[int] = []
        return self

    def take(self, waiter: Any, bound: Slot | None = None) -> Slot | None:
        slot = super().take(waiter, bound)
        self._look()
        return slot

    def give_back(self, slot: Slot) -> Any:
        granted = super().give_back(slot)
        self._look()
        return granted

    def _look(self) -> None:
        if self.waiting:
            counts = [count for engine in self.counts for count in engine]
            self.spreads.append(max(counts) - min(counts))


def test_500_requests_with_failures_and_cancellations(engines: list[Endpoint]) -> None:
    draw = random.Random(5)
    outcomes: Counter[str] = Counter()
    answered: Counter[Slot] = Counter()

    async def one(client: Client, kind: str) -> None:
        session = client.session()
        refused = {"long": body(4, prompt=40_000), "bad": body(4, temperature=-1.0)}
        try:
            answer = await session.generate(refused.get(kind) or body(draw.randint(1, 12)), dict)
        except ComponentError as error:
            assert "refused a request: 400" in str(error)
            outcomes["refused"] += 1
            return
        slot = session.slot
        assert slot is not None and answer["meta_info"]["dp_rank"] == slot.rank
        answered[slot] += 1
        outcomes["answered"] += 1
        if kind == "raises":
            raise OSError

    async def all_of_them(client: Client) -> Watched:
        client.slots.balance = watched = Watched([2, 2], LIMIT, 5).watch()
        kinds = draw.choices(["good", "long", "bad", "raises", "cancelled"], [60, 10, 10, 5, 15], k=REQUESTS)
        jobs = [asyncio.create_task(one(client, kind)) for kind in kinds]
        victims = [job for job, kind in zip(jobs, kinds, strict=True) if kind == "cancelled"]
        while not all(job.done() for job in jobs):
            await asyncio.sleep(draw.random() * 0.05)
            if victims:
                victims.pop(draw.randrange(len(victims))).cancel()
        outcomes["cancelled"] = sum(job.cancelled() for job in jobs)
        outcomes["raised"] = sum(not job.cancelled() and isinstance(job.exception(), OSError) for job in jobs)
        assert all(job.cancelled() or isinstance(job.exception(), OSError | None) for job in jobs)
        return watched

    watched = use(engines, all_of_them)
    assert watched.counts == [[0, 0], [0, 0]] and watched.waiting == 0
    assert len(watched.spreads) > REQUESTS / 2 and max(watched.spreads) <= 1
    assert outcomes["answered"] + outcomes["refused"] + outcomes["cancelled"] == REQUESTS
    assert min(outcomes.values()) > 10 and len(outcomes) == 4, outcomes
    assert len(answered) == 4, answered  # how many each answers is a matter of its speed


def test_idle_engines_leave_the_cores_alone(servers: dict[Server, Endpoint]) -> None:
    """Stock SGLang's data-parallel controller looks for requests without a pause."""
    all_of_them = [psutil.Process(pid) for server in servers for pid in processes(server)]

    def used() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in all_of_them)

    before, began = used(), time.monotonic()
    time.sleep(1.0)
    assert used() - before < 0.3 * (time.monotonic() - began)


def test_abort_ends_all_and_the_answers_arrive(engines: list[Endpoint]) -> None:
    """Requests that run, wait in the engine, wait for a place, and whose caller has gone."""

    async def run(client: Client) -> list[dict[str, Any]]:
        sessions = [client.session() for _ in range(40)]
        asked = body(500) | {"return_logprob": True}
        jobs = [asyncio.create_task(session.generate(asked, dict)) for session in sessions]
        gone = asyncio.create_task(client.session().generate(asked, dict))
        async with asyncio.timeout(30):
            while not any(load["num_running_reqs"] for engine in engines for load in loads(engine)):
                await asyncio.sleep(0.05)
        gone.cancel()
        await client.abort_all()
        assert all(job.done() for job in jobs)
        assert client.slots.balance.in_flight == client.slots.balance.waiting == 0
        assert not any(load["num_running_reqs"] for engine in engines for load in loads(engine))
        answers = [await job for job in jobs]
        # whoever was there before asks nothing any more; whoever comes new does
        assert (await sessions[0].generate(body(1), dict))["output_ids"] == []
        assert len((await client.session().generate(body(3), dict))["output_ids"]) == 3
        return answers

    answers = use(engines, run, max_concurrency=12)
    assert {answer["meta_info"]["finish_reason"]["type"] for answer in answers} == {"abort"}
    lengths = [len(answer["output_ids"]) for answer in answers]
    assert sum(length > 0 for length in lengths) >= 4 and sum(length == 0 for length in lengths) >= 16
    for answer, length in zip(answers, lengths, strict=True):
        meta = answer["meta_info"]
        assert len(meta.get("output_token_logprobs", [])) == length == meta["completion_tokens"] < 500


def loads(engine: Endpoint) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = get(engine, "/v1/loads").json()["loads"]
    return found


def test_abort_passes_over_dead_engines_and_names_those_that_refuse(engines: list[Endpoint]) -> None:
    dead = Endpoint(f"http://127.0.0.1:{free_port()}", model="actor")
    use([engines[0], dead], Client.abort_all)
    closed = Endpoint(engines[0].url, engines[0].key, "actor")
    with pytest.raises(ComponentError, match=r"refused to abort its requests: 401; .*admin_key_file"):
        use([closed], Client.abort_all)


def test_abort_says_what_still_runs(engines: list[Endpoint]) -> None:
    async def run(client: Client) -> None:
        client.slots.balance.take(asyncio.get_running_loop().create_future())
        await client.abort_all(timeout_s=0.2)

    with pytest.raises(DeadlineError, match="1 of ours are unanswered; no engine runs any"):
        use(engines, run)


def test_a_conversation_stays_where_it_began(engines: list[Endpoint]) -> None:
    async def talk(session: Session) -> set[int]:
        return {(await session.generate(body(2), dict))["meta_info"]["dp_rank"] for _ in range(4)}

    async def run(client: Client) -> list[set[int]]:
        sessions = [client.session() for _ in range(12)]
        ranks = await asyncio.gather(*map(talk, sessions))
        assert len({session.slot for session in sessions}) == 4
        return ranks

    assert {len(ranks) for ranks in use(engines, run, max_concurrency=2)} == {1}


@pytest.mark.parametrize("policy", ["consistent_hashing", "round_robin"])
def test_a_router_decides_by_itself(engines: list[Endpoint], tmp_path: Path, policy: str) -> None:
    """dp-aware, it names the rank: every rank is used, and a conversation's key keeps it at one."""
    router = make_server("router", tmp_path, tmp_path, policy=policy, dp_aware=True)
    affinity = policy == "consistent_hashing"

    async def run(client: Client) -> list[set[tuple[str, int]]]:
        sessions = [client.session() for _ in range(24)]
        answers = [[await session.generate(body(1), dict) for _ in range(3)] for session in sessions]
        return [{(a["meta_info"]["dp_rank"]) for a in of_one} for of_one in answers]

    with stopped(router):
        url = router.start({"engine_url": engines})["router_url"]
        ranks = use(engines, run, routers=[url], routing={"by": "router", "affinity": affinity})
    assert set().union(*ranks) == {0, 1}
    assert all(len(of_one) == 1 for of_one in ranks) == affinity


def test_nobody_to_ask_is_an_error() -> None:
    with pytest.raises(ComponentError, match=r"nobody to generate: rollout.routing=router"):
        use([], Client.abort_all, routing={"by": "router", "affinity": False})
