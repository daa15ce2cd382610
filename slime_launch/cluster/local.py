"""A Ray cluster of our own on this machine: loopback only, token-authenticated, under a guard."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from slime_launch import signals
from slime_launch.cluster.backend import Request
from slime_launch.cluster.environment import actor_environment, loopback_environment, token_environment
from slime_launch.cluster.session import ray_session
from slime_launch.errors import ComponentError, DeadlineError
from slime_launch.guard import Guarded, descendants

_START_TIMEOUT_S = 60.0
_GRACE_S = 2.0
_MIN_STORE_BYTES = 80 * 2**20


@dataclass(frozen=True)
class Head:
    """The head under its guard (Connection)."""

    guarded: Guarded

    def processes(self) -> list[int]:
        """Process ids of the guard and everything below it."""
        return [self.guarded.pid, *descendants(self.guarded.pid)]


@dataclass(frozen=True, kw_only=True)
class LocalCluster:
    """Backend: starts Ray's head; afterwards it and every process below it, servers included, are gone."""

    @contextmanager
    def connect(self, request: Request) -> Iterator[Head]:
        """See Backend."""
        with ExitStack() as stack:
            temp = Path(tempfile.mkdtemp(prefix="slime-launch-", dir="/tmp"))  # Ray's socket paths must stay short
            stack.callback(shutil.rmtree, temp, ignore_errors=True)
            token = temp / "token"
            token.touch(mode=0o600)
            token.write_text(secrets.token_hex(32))
            env = actor_environment(request.allow_targets) | loopback_environment() | token_environment(token)
            os.environ.update(env)
            os.environ.pop("RAY_AUTH_TOKEN", None)  # would win over the file
            guarded = Guarded.start(
                _head(request, temp), env=os.environ, log=request.log, grace_s=_GRACE_S, scratch=temp
            )
            stack.callback(guarded.stop)
            _await_head(guarded, request.log)
            stack.enter_context(ray_session(f"127.0.0.1:{request.port}"))
            yield Head(guarded)


def _head(request: Request, temp: Path) -> list[str]:
    store = max(_MIN_STORE_BYTES, request.store_mb * 2**20)
    return [
        sys.executable, "-P", str(Path(__file__).with_name("ray_head.py")), f"--port={request.port}",
        f"--num-cpus={request.num_cpus}", f"--num-gpus={request.num_gpus}", f"--object-store-bytes={store}",
        f"--temp-dir={temp / 'ray'}",
    ]  # fmt: skip


def _await_head(guarded: Guarded, log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while "\nready " not in (text := "\n" + log.read_text(errors="replace")):
        signals.check()
        if guarded.poll() is not None:
            raise ComponentError(f"Ray did not start; log {log} ends with:\n{text[-2000:]}")
        if time.monotonic() > deadline:
            raise DeadlineError(f"Ray was not up after {_START_TIMEOUT_S:.0f} s; see {log}")
        time.sleep(0.05)
