"""A server that speaks OpenAI's protocol and does what a test says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Say = Callable[[dict[str, Any]], Any]
"""A request's body -> the text of the answer, an aiohttp response, or a coroutine function that gives one."""


@dataclass
class OpenAIServer:
    """Answers chat completions by ``say``. bodies: what was asked; heads: its headers. most: requests at once."""

    say: Say = lambda body: "7"
    base_url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    heads: list[dict[str, str]] = field(default_factory=list)
    most: int = 0
    _running: int = 0

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.heads.append({name.lower(): value for name, value in request.headers.items()})
        self._running += 1
        self.most = max(self.most, self._running)
        try:
            await asyncio.sleep(0.01)
            said = self.say(body)
            if asyncio.iscoroutine(said):
                said = await said
            if callable(said):
                said = await said(request)
        finally:
            self._running -= 1
        return said if isinstance(said, web.StreamResponse) else web.json_response(completion(said))

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "big", "object": "model"}]})


def completion(text: Any, ended: str = "stop") -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": ended}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "big", "choices": [choice]}


def refusal(status: int, **headers: str) -> web.Response:
    return web.json_response({"error": {"message": f"no: {status}"}}, status=status, headers=headers)


@contextmanager
def answering(say: Say = lambda body: "7") -> Iterator[OpenAIServer]:
    """The server on a loop of its own thread."""
    server, loop, ready = OpenAIServer(say), asyncio.new_event_loop(), threading.Event()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.complete)
    app.router.add_get("/v1/models", server.models)
    runner = web.AppRunner(app, shutdown_timeout=0.1)

    async def serve() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        ready.set()

    async def end() -> None:
        await runner.cleanup()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.create_task(serve())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
