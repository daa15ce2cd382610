"""An engine's control endpoints, asked with its admin token; every wait has a deadline and every refusal its words."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Any, TypeVar

import httpx

from slime_launch.errors import ComponentError, DeadlineError

_T = TypeVar("_T")
_POLL_S = 0.0005


class Control:
    """One engine's control endpoints. Picklable until ``open``.

    url, key: the engine and its admin token, empty when it takes none. timeout_s: limit of each single wait.
    """

    def __init__(self, url: str, key: str, timeout_s: float) -> None:
        self.url = url
        self._key = key
        self._timeout_s = timeout_s
        self._client: httpx.Client | None = None

    @property
    def timeout_s(self) -> float:
        """Limit of each single wait."""
        return self._timeout_s

    def open(self) -> None:
        """Get ready to ask."""
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx.Client(base_url=self.url, headers=headers, timeout=self._timeout_s, trust_env=False)

    def close(self) -> None:
        """Close the connections; safe to call twice."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def post(self, path: str, body: dict[str, Any], doing: str) -> None:
        """Ask and wait for the answer.

        Raises ComponentError when the engine refuses or is gone, DeadlineError when it is late.
        """
        self.finish(self.later(path, body), doing)

    def later(self, path: str, body: dict[str, Any], timeout_s: float | None = None) -> Future[httpx.Response]:
        """Ask without waiting."""
        client = self._client
        if client is None:
            raise ComponentError(f"engine {self.url}: not connected for weight sync; call connect first")
        limit = timeout_s or self._timeout_s
        return background(lambda: client.post(path, json=body, timeout=limit))

    def watch(self, done: Callable[[], bool], reply: Future[httpx.Response], doing: str) -> None:
        """Wait for our half of a transfer, unless the engine answers first with a refusal."""
        deadline = time.monotonic() + self._timeout_s
        while not done():
            if reply.done():
                self.finish(reply, doing)
            if time.monotonic() > deadline:
                raise self._late(doing)
            time.sleep(_POLL_S)

    def finish(self, reply: Future[httpx.Response], doing: str) -> None:
        """Wait for an answer and read it; errors as in ``post``."""
        try:
            answer = reply.result(self._timeout_s)
        except (httpx.TimeoutException, TimeoutError) as error:
            raise self._late(doing) from error
        except httpx.HTTPError as error:
            raise ComponentError(f"engine {self.url}: {doing} failed ({error!r}); see its log") from error
        if answer.status_code != 200:
            raise ComponentError(f"engine {self.url}: {doing} was refused ({answer.status_code} {answer.text})")

    def _late(self, doing: str) -> DeadlineError:
        return DeadlineError(f"engine {self.url}: {doing} took longer than {self._timeout_s:.0f} s; see its log")


def background(work: Callable[[], _T]) -> Future[_T]:
    """Run in a daemon thread: a wait for an engine that never joins must not hold up the end of the process."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future
