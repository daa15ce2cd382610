"""An engine without a model: it answers over HTTP as SGLang does, so fast that scheduling is all there is to see."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from aiohttp import web

from components.rollout.worker import RolloutWorker
from slime_launch.types import Endpoint, Prompt

BUDGET = 16
"""Tokens of a response; what a request asks for less is there already."""
FIRST, VOCAB = 20, 40
"""Ids that it samples: VOCAB of them from FIRST on."""


def token_of(seed: int, place: int) -> int:
    """What it samples at a place of a sequence: like SGLang's, a function of seed and position alone."""
    return FIRST + blake2b(f"{seed} {place}".encode()).digest()[0] % VOCAB


@dataclass
class HttpEngine:
    """Samples one token a tick, until the whole response has the length that ``length`` gives for a request's body.

    tick_s: of a request's body. bodies, answers: everything that came and went, in pairs. version: of its weights.
    """

    length: Callable[[Mapping[str, Any]], int] = lambda body: 4
    tick_s: Callable[[Mapping[str, Any]], float] = lambda body: 0.001
    refuses: Callable[[Mapping[str, Any]], bool] = lambda body: False
    version: int = 0
    url: str = ""
    exchanges: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list)
    running: int = 0
    most: int = 0
    _aborts: int = 0

    async def generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        sampling, epoch, ids = body["sampling_params"], self._aborts, list(body["input_ids"])
        if self.refuses(body):
            return web.json_response({"error": "too long"}, status=400)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            out: list[int] = []
            ended = "stop"
            wanted = self.length(body) - (BUDGET - sampling["max_new_tokens"])
            while len(out) < wanted:
                await asyncio.sleep(self.tick_s(body))
                if self._aborts != epoch:
                    ended = "abort"
                    break
                out.append(token_of(sampling["sampling_seed"], len(ids) + len(out)))
                if len(out) == sampling["max_new_tokens"]:
                    ended = "stop" if len(out) == wanted else "length"
                    break
        finally:
            self.running -= 1
        meta = {
            "prompt_tokens": len(ids), "completion_tokens": len(out), "finish_reason": {"type": ended},
            "output_token_logprobs": [[-1.0 - place / 8, token, None] for place, token in enumerate(out)],
            "weight_version": str(self.version),
        }  # fmt: skip
        self.exchanges.append((body, meta))
        return web.json_response({"meta_info": meta})

    async def abort(self, request: web.Request) -> web.Response:
        self._aborts += 1
        return web.json_response({})

    async def loads(self, request: web.Request) -> web.Response:
        return web.json_response({"loads": [{"num_running_reqs": self.running, "num_waiting_reqs": 0}]})


@contextmanager
def serving(engine: HttpEngine) -> Iterator[HttpEngine]:
    """The engine on a loop of its own thread."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    app = web.Application()
    app.router.add_post("/generate", engine.generate)
    app.router.add_post("/abort_request", engine.abort)
    app.router.add_get("/v1/loads", engine.loads)
    runner = web.AppRunner(app)

    async def serve() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        engine.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.create_task(serve())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield engine
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


class Endless:
    """Prompts "0", "1", ... without an end; two held out. ``of``: what is particular about a prompt, by its number."""

    def __init__(self, seed: int) -> None:
        self.at = 0

    def of(self, number: int) -> dict[str, Any]:
        return {}

    def take(self, num_prompts: int) -> list[Prompt]:
        self.at += num_prompts
        return [self.prompt(number) for number in range(self.at - num_prompts, self.at)]

    def prompt(self, number: int) -> Prompt:
        return Prompt([{"role": "user", "content": str(number)}], str(number), **self.of(number))

    def eval_sets(self) -> dict[str, list[Prompt]]:
        return {"held_out": [self.prompt(1000), self.prompt(1001)]}

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


EXACT = {"_target_": "components.rewards.exact.Exact", "weight": 1.0}


def worker_args(**changes: Any) -> dict[str, Any]:
    """Arguments of a rollout worker of three groups of four, but for its checkpoint."""
    partial = {"keep": False, "mask_old": False, "max_lag": 4} | changes.pop("partial", {})
    args: dict[str, Any] = {
        "data": {"_target_": f"{__name__}.Endless"},
        "reward": {"_target_": "components.rewards.mix.Mix", "parts": {"exact": EXACT}}, "score": None,
        "num_prompts": 3, "group_size": 4, "eval_samples": 2, "partial": partial,
        "sampling": {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": BUDGET},
        "generate": {"_target_": "components.rollout.single.SingleTurn"}, "oversample": 1.0, "filters": {},
        "draw_limit": 8, "keep_when_insufficient": False, "compares_group": True, "eval_sets": {}, "pass_at": [],
        "routing": {"by": "direct", "affinity": False}, "max_concurrency": 64, "request_timeout_s": 20.0, "seed": 1,
    }  # fmt: skip
    return args | changes


def make_worker(checkpoint: object, url: str, engines: Sequence[Endpoint] = (), **changes: Any) -> RolloutWorker:
    """A started rollout worker of one engine, or of several."""
    made = RolloutWorker(hf_checkpoint=str(checkpoint), **worker_args(**changes))
    made.start({"engine_url": engines or [Endpoint(url)]})
    return made
