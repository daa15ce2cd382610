"""One launcher for every kind of server: encoder, engine and router."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from components.sglang import cpu, kinds
from components.sglang.control import Control
from components.sglang.keys import Keys
from components.sglang.plugin import KIND_ENV
from slime_launch.errors import ComponentError, DeadlineError
from slime_launch.guard import Guarded
from slime_launch.interfaces import Findings, Needs, Provides

_POLL_S = 0.2
_PROBE_S = 10.0
_RENEW_S = 60.0
_TAIL_LINES = 20
_TAIL_BYTES = 1 << 14
# a server keeps nothing worth a longer farewell; given longer, SGLang reports the end of its own children as a crash
_GRACE_S = 1.0
_ROOT = Path(__file__).resolve().parents[2]


class Server:
    """One SGLang server in a process tree of its own (Component).

    name: how messages call it. kind: a key of ``kinds.KINDS``. host, port: where it listens.
    model_path, model: the checkpoint it serves, and the served model's name in the topology.
    server_args: SGLang ServerArgs fields, or RouterArgs fields for a router; they win over what the kind sets.
    env: environment of the server beside the inherited one. log: the log file, created with mode 0600.
    start_timeout_s: seconds until it must be healthy.
    weight_sync: how an engine takes weights: ``via`` (broadcast or disk) and the arguments of that sink, see
        ``weights.EngineSink`` and ``disk.DiskSink``.
    shared_key: file with the user token of engines that must have it in common; made by the first of them, and left
        for those that are started again.

    Raises ComponentError for an unknown kind.
    """

    def __init__(
        self,
        *,
        name: str,
        kind: str,
        host: str,
        port: int,
        model_path: str,
        server_args: dict[str, Any],
        env: dict[str, str],
        log: str,
        start_timeout_s: float,
        model: str = "actor",
        weight_sync: dict[str, Any] | None = None,
        shared_key: str | None = None,
    ) -> None:
        if kind not in kinds.KINDS:
            raise ComponentError(f"server {name}: unknown kind {kind}; one of {', '.join(kinds.KINDS)}")
        self._log = Path(log).resolve()
        own = (Keys.fresh(), shared_key, str(self._log))
        self.site = kinds.Site(name, kind, host, port, model_path, model, server_args, weight_sync, *own)
        self.kind = kinds.KINDS[kind]
        self._kind_name = kind
        self._env = env
        self._timeout_s = start_timeout_s
        self._process: Guarded | None = None
        self._broken: str | None = None

    @classmethod
    def preflight(cls, args: Mapping[str, Any]) -> Findings:
        """Whether the installed SGLang takes the arguments of a plan (Checkable)."""
        from components.sglang.preflight import preflight

        return preflight(args)

    def start(self, needs: Needs) -> Provides:
        """Start the server and wait until it is healthy; see ``kinds`` for what each kind needs and provides.

        Raises ComponentError when it ends first, DeadlineError when it is late; both carry the end of its log.
        """
        deadline = time.monotonic() + self._timeout_s
        self.site = replace(self.site, keys=self.kind.keys(self.site, needs))
        spec = {"program": self.kind.program, "args": self.kind.args(self.site, needs)}
        self._log.parent.mkdir(parents=True, exist_ok=True)
        spec_file = self._log.with_name(f"{self._log.name}.{os.getpid()}.json")
        spec_file.unlink(missing_ok=True)
        with open(os.open(spec_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            json.dump(spec | {"secrets": list(filter(None, self.site.keys.secrets))}, out)
        argv = [sys.executable, "-P", str(Path(__file__).with_name("serve.py")), str(spec_file)]
        self._process = Guarded.start(argv, env=self._full_env(), log=self._log, grace_s=_GRACE_S)
        try:
            self._wait_healthy(deadline, needs)
        except BaseException:
            self.stop()
            raise
        finally:
            spec_file.unlink(missing_ok=True)
        return self.kind.provides(self.site)

    def renew(self) -> Provides:
        """Make a running server ready for another job: no request runs, and no prefix or image is remembered.

        Weights and weight version stay until that job sends its own. Returns what ``start`` returned. Raises
        ComponentError when the server is gone or refuses.
        """
        if (broken := self.failure()) is not None or self._process is None:
            raise ComponentError(broken or f"{self._title()} was not started")
        if self._kind_name in kinds.ENGINE_URLS:
            control = Control(self.site.url, self.site.keys.admin, _RENEW_S)
            control.open()
            try:
                control.post("/abort_request", {"abort_all": True}, "aborting requests")
                control.post(f"/flush_cache?timeout={_RENEW_S / 2:.0f}", {}, "flushing caches")
            finally:
                control.close()
        return self.kind.provides(self.site)

    def failure(self) -> str | None:
        """None while the process lives, else its exit code and the end of its log."""
        code = self._process.poll() if self._process is not None else None
        if code is not None and self._broken is None:
            self._broken = f"{self._title()} ended with exit code {code}{self._tail()}"
        return self._broken

    def stop(self) -> None:
        """End the server and every process below it."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def encoder_requests(self) -> int:
        """Images that an encoder has encoded since it started, health checks left out, cached images included.

        Read from its metrics (``sglang:encoder_mm_items_per_request``). Raises ComponentError when it does not answer.
        """
        try:
            lines = (
                httpx.get(self.site.url + "/metrics", timeout=10.0, trust_env=False)
                .raise_for_status()
                .text.splitlines()
            )
        except httpx.HTTPError as error:
            raise ComponentError(f"{self._title()} gives no metrics: {error!r}{self._tail()}") from error
        sums = [line for line in lines if line.startswith("sglang:encoder_mm_items_per_request_sum")]
        return round(sum(float(line.rsplit(" ", 1)[1]) for line in sums))

    def _wait_healthy(self, deadline: float, needs: Needs) -> None:
        with httpx.Client(base_url=self.site.url, timeout=_PROBE_S, trust_env=False) as client:
            for step in self.kind.steps:
                while not step(self.site, client, needs):
                    if (broken := self.failure()) is not None:
                        raise ComponentError(broken)
                    if time.monotonic() > deadline:
                        late = f"{self._title()} is not healthy after {self._timeout_s:.0f} s"
                        raise DeadlineError(late + "; raise its start_timeout_s or see its log" + self._tail())
                    time.sleep(_POLL_S)

    def _full_env(self) -> dict[str, str]:
        on_cpu = self.site.server_args.get("device") == "cpu"
        paths = [str(cpu.KERNELS)] * on_cpu + [str(_ROOT), os.environ.get("PYTHONPATH", "")]
        platform = cpu.environment(self.site.server_args) if on_cpu else {}
        # what is compiled outlives the server, whose own temporary folder does not
        kept = {"TORCHINDUCTOR_CACHE_DIR": f"/tmp/torchinductor_{os.getuid()}"}
        own = {KIND_ENV: self._kind_name, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONSAFEPATH": "1"}
        return kept | os.environ | kinds.network_env(self.site.host) | platform | own | self._env

    def _title(self) -> str:
        return f"server {self.site.name} ({self._kind_name}, {self.site.url})"

    def _tail(self) -> str:
        try:
            with self._log.open("rb") as log:
                log.seek(max(0, self._log.stat().st_size - _TAIL_BYTES))
                lines = log.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
        except OSError:
            lines = []
        return "\n".join([f"; log {self._log} ends with:", *lines])
