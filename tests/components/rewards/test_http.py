"""A score from a server: whatever it answers is a score or an error, never a zero, and never too much of it."""

import asyncio
import threading

import pytest
from aiohttp import web

from components.rewards.http import Http
from components.rewards.mix import Mix
from slime_launch.errors import ComponentError, DeadlineError
from slime_launch.interfaces import Closes, SingleReward
from tests.components.rewards.samples import sample


class Server:
    """Answers as a path says, in a thread of its own; counts what it is asked."""

    def __init__(self):
        self.asked, self.sent, self.flaky = [], 0, 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self._ready.wait()

    def _serve(self):
        asyncio.set_event_loop(self._loop)
        app = web.Application()
        app.router.add_post("/{how}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        asked = asyncio.all_tasks(self._loop)
        for task in asked:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*asked, return_exceptions=True))

    def stop(self):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _answer(self, request):
        how = request.match_info["how"]
        self.asked.append((await request.json(), dict(request.headers)))
        if how in ("drip", "huge"):
            return await self._stream(request, how)
        if how == "hang":
            await asyncio.sleep(60)
        if how == "flaky":
            self.flaky += 1
            return web.json_response({"score": 0.5}) if self.flaky > 2 else web.Response(status=503, text="busy")
        if how == "redirect":
            raise web.HTTPFound("/good")
        texts = {
            "good": '{"score": 0.25, "more": [1]}', "zero": '{"score": 0}', "garbage": "<html>", "null": "null",
            "nan": '{"score": NaN}', "text": '{"score": "1"}', "true": '{"score": true}', "list": "[0.5]",
            "big": '{"score": 1' + "0" * 400 + "}", "deep": "[" * 50000, "fault": "oh dear",
        }  # fmt: skip
        return web.Response(text=texts[how], status=500 if how == "fault" else 200)

    async def _stream(self, request, how):
        reply = web.StreamResponse()
        await reply.prepare(request)
        try:
            for _ in range(600 if how == "drip" else 16384):
                await reply.write(b" " * (1 if how == "drip" else 1 << 16))
                self.sent += 1
                if how == "drip":
                    await asyncio.sleep(0.05)
        except ConnectionError:
            pass
        return reply


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.stop()


def ask(url, **args):
    async def once():
        reward = Http(url, **args)
        assert isinstance(reward, SingleReward) and isinstance(reward, Closes)
        try:
            return await reward.score_one(sample("[7]", metadata={"k": [1]}))
        finally:
            await reward.close()

    return asyncio.run(once())


def test_a_score(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    (tmp_path / "key").write_text("token\n")
    assert ask(server.url + "/good", key_file=str(tmp_path / "key"), images=True) == 0.25
    body, headers = server.asked[-1]
    assert body == {
        "prompt": "?", "messages": [{"role": "user", "content": "?"}], "response": "[7]", "label": "7",
        "source": "digits", "status": "completed", "metadata": {"k": [1]}, "group": 3, "index": 0, "images": [],
    }  # fmt: skip
    assert headers["Authorization"] == "Bearer token"
    assert ask(server.url + "/zero") == 0.0 and "Authorization" not in server.asked[-1][1]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("fault", "500: 'oh dear'"), ("garbage", "no JSON: '<html>'"), ("null", "answered None"), ("nan", "nan"),
        ("text", "'score': '1'"), ("true", "True"), ("list", "0.5"), ("big", "not {\"score\": number}"),
        ("deep", "no JSON|answers more"), ("redirect", "answered 302"), ("huge", "more than 64 KB"),
    ],
)  # fmt: skip
def test_an_answer_that_is_no_score(server, how, says):
    with pytest.raises(ComponentError, match=says):
        ask(f"{server.url}/{how}")
    assert server.sent < 1000  # of 16384 pieces of 64 KB


@pytest.mark.parametrize("how", ["hang", "drip"])
def test_an_answer_that_does_not_come(server, how):
    with pytest.raises(DeadlineError, match=r"no whole answer within 0.3 s"):
        ask(f"{server.url}/{how}", timeout_s=0.3)


def test_nobody_there():
    with pytest.raises(ComponentError, match="cannot be asked"):
        ask("http://127.0.0.1:9/score")


def test_asked_again_by_the_mixer(server):
    """A busy server is asked again; one that stays broken drops the sample, and neither is a zero."""

    async def mixed(how):
        node = {"_target_": "components.rewards.http.Http", "weight": 1, "url": f"{server.url}/{how}"}
        mix = Mix({"remote": node | {"on_error": {"retry": 2, "then": "drop"}}})
        samples = [sample("[7]")]
        await mix.score(samples)
        await mix.close()
        return samples[0]

    assert asyncio.run(mixed("flaky")).reward == 0.5 and server.flaky == 3
    assert asyncio.run(mixed("fault")).dropped == "reward remote failed"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"url": "ftp://a/b"}, "url=ftp"), ({"url": "host/score"}, "url=host"), ({"url": None}, "url=None"),
        ({"url": "http://u:p@a/"}, "without user"), ({"url": "http://a:x/"}, "url=http"), ({"url": "http:///s"}, "="),
        ({"url": "http://a/", "timeout_s": 0}, "timeout_s=0"), ({"url": "http://a/", "max_answer_kb": 0}, "max_answer"),
        ({"url": "http://a/", "key_file": "/nowhere"}, "key_file=/nowhere"),
    ],
)  # fmt: skip
def test_refuses(args, says):
    with pytest.raises(ComponentError, match=says):
        Http(**args)
