"""Rewards that ask a served model: what they send, what they read, what they refuse."""

import asyncio
import json
import threading

import pytest
from aiohttp import web

from components.rewards.model import Judge, Scalar
from slime_launch.errors import ComponentError
from slime_launch.interfaces import Closes, Connects, SingleReward
from slime_launch.types import Endpoint
from tests.components.rewards.samples import sample


class Router:
    """Answers every path with what it is told to; keeps what it was asked."""

    def __init__(self):
        self.answer, self.asked = {}, []
        self._loop, ready = asyncio.new_event_loop(), threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,))
        self._thread.start()
        ready.wait()

    def _serve(self, ready):
        asyncio.set_event_loop(self._loop)
        app = web.Application()
        app.router.add_post("/{path:.*}", self._reply)
        runner = web.AppRunner(app)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.endpoint = Endpoint(f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}", "key", "reward")
        ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())

    async def _reply(self, request):
        self.asked.append((request.path, request.headers["Authorization"], await request.json()))
        return web.Response(text=json.dumps(self.answer))

    def stop(self):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="module")
def router():
    router = Router()
    yield router
    router.stop()


def ask(reward, router, answer):
    async def once():
        assert all(isinstance(reward, protocol) for protocol in (SingleReward, Connects, Closes))
        router.answer = answer
        reward.connect({"actor": Endpoint("http://127.0.0.1:9"), "reward": router.endpoint})
        try:
            return await reward.score_one(sample("It costs $5 {x}"))
        finally:
            await reward.close()

    return asyncio.run(once())


def said(text):
    return {"choices": [{"message": {"content": text}}]}


def test_a_judge(router):
    judge = Judge(
        "reward", "$question|$prompt|$label|$response|$$", system="Be fair.", max_tokens=9, request={"seed": 1}
    )
    assert ask(judge, router, said("Score: 3 at first, but then. score: -7.5 it is")) == -7.5
    path, key, body = router.asked[-1]
    assert (path, key) == ("/v1/chat/completions", "Bearer key")
    assert body == {
        "model": "reward", "temperature": 0.0, "max_tokens": 9, "seed": 1,
        "messages": [
            {"role": "system", "content": "Be fair."}, {"role": "user", "content": "?|?|7|It costs $5 {x}|$"},
        ],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (said("a fine answer"), "judge reward gave no score: 'a fine answer'"), (said(None), "gave no score: ''"),
        ({"choices": []}, "no chat completion"), ([], "no chat completion"), (said("Score: " + "9" * 400), "no score"),
        (said([1]), "no chat completion"),
    ],
)  # fmt: skip
def test_a_judge_that_gives_no_score(router, answer, says):
    with pytest.raises(ComponentError, match=says):
        ask(Judge("reward", "$response"), router, answer)


def test_a_scalar_head(router):
    assert ask(Scalar("reward"), router, {"data": [{"embedding": [-1.5]}]}) == -1.5
    assert router.asked[-1][::2] == ("/v1/embeddings", {"model": "reward", "input": "?It costs $5 {x}"})
    for answer in ({"data": []}, {"data": [{"embedding": [1.0, 2.0]}]}, {"data": [{"embedding": ["x"]}]}, None):
        with pytest.raises(ComponentError, match="reward model reward"):
            ask(Scalar("reward"), router, answer)


def test_refuses():
    for make, says in (
        (lambda: Judge("reward", "$answer $response"), r"does not know answer.*\$label"),
        (lambda: Judge("reward", "5$ for $response"), "does not know"),
        (lambda: Judge("reward", "$question"), r"lacks \$response"),
        (lambda: Judge("reward", "$response", pattern="("), "not a regular expression"),
        (lambda: Judge("reward", "$response", pattern="x"), "exactly one group"),
        (lambda: Scalar("reward", timeout_s=-1), "timeout_s=-1"),
        (lambda: Scalar("reward").connect({"actor": Endpoint("http://a")}), "served_model=reward: not served.*actor"),
        (lambda: asyncio.run(Scalar("reward").score_one(sample("x"))), "before it was connected"),
    ):
        with pytest.raises(ComponentError, match=says):
            make()
