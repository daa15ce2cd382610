"""The seed of each sample, and that the rollout sends it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from components.models.qwen3 import tiny
from components.rollout.seeds import sampling_seed
from components.rollout.worker import RolloutWorker
from slime_launch.types import Endpoint, Prompt

PARTS = st.lists(st.integers() | st.text(max_size=8), max_size=5).map(tuple)


@given(PARTS, PARTS)
def test_a_seed_is_its_parts(first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
    assert 0 <= sampling_seed(*first) < 2**63
    assert (sampling_seed(*first) == sampling_seed(*second)) == (
        [(type(part), part) for part in first] == [(type(part), part) for part in second]
    )


def test_seeds_do_not_change_between_releases() -> None:
    assert sampling_seed(0, "train", 1, 2, 3) == 3545768424974411557


class Prompts:
    """Three prompts, always the same."""

    def __init__(self, seed: int) -> None:
        self.prompts = [Prompt([{"role": "user", "content": str(n)}], str(n)) for n in range(3)]

    def take(self, num_prompts: int) -> list[Prompt]:
        return self.prompts[:num_prompts]

    def eval_sets(self) -> dict[str, list[Prompt]]:
        return {"held_out": self.prompts[:2]}


class Engine:
    """Answers whatever it is asked and writes the seeds down, each with its prompt, the later requests first."""

    def __init__(self) -> None:
        self.seeds: list[tuple[tuple[int, ...], int]] = []

    async def generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.seeds.append((tuple(body["input_ids"]), body["sampling_params"]["sampling_seed"]))
        await asyncio.sleep(0.001 * (len(self.seeds) % 3))
        counts = {"prompt_tokens": len(body["input_ids"]), "completion_tokens": 1}
        tokens = {"output_token_logprobs": [[-1.0, 20, None]], "finish_reason": {"type": "stop"}}
        meta = counts | tokens | {"weight_version": "0"}
        return web.json_response({"meta_info": meta})


@pytest.fixture(autouse=True)
def ours_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIME_LAUNCH_ALLOW_TARGETS", "tests")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny.write_checkpoint(folder, 1)
    return folder


@pytest.fixture
def engine() -> Iterator[tuple[Engine, str]]:
    """A server on a loop of its own thread."""
    import threading

    engine, loop, ready = Engine(), asyncio.new_event_loop(), threading.Event()
    port: list[int] = []

    async def serve() -> None:
        app = web.Application()
        app.router.add_post("/generate", engine.generate)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port.append(runner.addresses[0][1])
        ready.set()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.create_task(serve())
        loop.run_forever()

    threading.Thread(target=run, daemon=True).start()
    assert ready.wait(10)
    yield engine, f"http://127.0.0.1:{port[0]}"
    loop.call_soon_threadsafe(loop.stop)


def worker(checkpoint: Path, url: str, seed: int) -> RolloutWorker:
    made = RolloutWorker(
        hf_checkpoint=str(checkpoint),
        data={"_target_": f"{__name__}.Prompts"},
        reward={"_target_": "components.rewards.mix.Mix", "parts": {"exact": _EXACT}},
        score=None, num_prompts=3, group_size=4, eval_samples=2,
        sampling={"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 4},
        max_concurrency=5, request_timeout_s=20.0, seed=seed,
    )  # fmt: skip
    made.start({"router_url": [Endpoint(url, "", "actor")]})
    return made


_EXACT = {"_target_": "components.rewards.exact.Exact", "weight": 1.0}


def test_every_sample_has_a_seed_that_step_and_place_alone_decide(checkpoint: Path, engine: tuple[Engine, str]) -> None:
    asked, url = engine
    rounds = []
    for seed, steps in ((1, (5, 6)), (1, (5,)), (2, (5,))):
        made = worker(checkpoint, url, seed)
        for step in steps:
            asked.seeds.clear()
            samples, _ = made.generate(step)
            assert [(sample.group, sample.index) for sample in samples] == [(g, i) for g in range(3) for i in range(4)]
            rounds.append(sorted(asked.seeds))
        made.stop()
    first, later, again, other = rounds
    assert len({seed for _, seed in first}) == 12
    assert first == again
    for different in (later, other):
        assert not {seed for _, seed in first} & {seed for _, seed in different}


def test_evaluation_uses_the_same_seeds_at_each_step(checkpoint: Path, engine: tuple[Engine, str]) -> None:
    asked, url = engine
    made = worker(checkpoint, url, 1)
    rounds = []
    for step in (0, 1):
        asked.seeds.clear()
        made.evaluate(step)
        rounds.append(sorted(asked.seeds))
    made.stop()
    assert rounds[0] == rounds[1]
    assert len({seed for _, seed in rounds[0]}) == 4
