"""A server that someone else runs: asked who it is before it is used, never started and never stopped."""

from __future__ import annotations

import time
from typing import Any

import httpx

from components.sglang.identity import Asked, Expected, differences
from components.sglang.keys import Keys
from components.sglang.kinds import engine_provides
from components.sglang.weights import make_sink
from slime_launch.errors import ComponentError, DeadlineError
from slime_launch.interfaces import Needs, Provides
from slime_launch.key_files import read_key
from slime_launch.types import Endpoint

_PATIENCE_S = 30.0
_PROBE_S = 10.0
_POLL_S = 0.5
_FAILURES = 3


class ExternalServer:
    """One server of ``rollout.topology.groups.<group>.urls`` (Component).

    name, group: how messages call it, and the group of the topology. kind: regular, prefill, decode or encoder.
    url, model: where it listens, and the served model's name. model_path: the checkpoint that it must have loaded.
    key_file, admin_key_file: files with its bearer tokens, read here and nowhere else; null where it takes none.
    expected: ServerArgs fields and the values it must run with. weight_sync: see ``weights.make_sink``; null where it
        keeps its weights. timeout_s: limit of each question; it is waited for half a minute at most.
    """

    def __init__(
        self,
        *,
        name: str,
        group: str,
        kind: str,
        model: str,
        url: str,
        key_file: str | None,
        admin_key_file: str | None,
        model_path: str,
        expected: dict[str, Any],
        weight_sync: dict[str, Any] | None,
        timeout_s: float,
    ) -> None:
        self._name, self._kind, self._model, self.url = name, kind, model, url
        self._key = f"rollout.topology.groups.{group}"
        self._key_files = {"key_file": key_file, "admin_key_file": admin_key_file}
        self._expected = Expected(self._key, kind, model_path, expected)
        self._weight_sync = weight_sync
        self._timeout_s = timeout_s
        self._client: httpx.Client | None = None
        self._failures = 0
        self._provided: dict[str, Any] = {}

    def start(self, needs: Needs) -> Provides:
        """Ask for health, version, model and parallel sizes; see ``kinds`` for what each kind provides.

        Raises ComponentError with everything that is not as expected, DeadlineError when it is not healthy in time.
        """
        keys = {field: read_key(f"{self._key}.{field}", file) for field, file in self._key_files.items()}
        self._client = httpx.Client(base_url=self.url, timeout=_PROBE_S, trust_env=False)
        self._wait_healthy()
        if self._kind == "encoder":
            print(f"{self._title()}: an encoder has no /server_info, so nothing but its health was asked", flush=True)
            self._provided = {"encoder_url": Endpoint(self.url, keys["key_file"], self._model)}
            return self._provided
        asked = Asked.of(self._client, keys["key_file"], self._timeout_s)
        admin = keys["admin_key_file"] if self._weight_sync is not None else None
        if found := differences(asked, self._expected, admin):
            lines = "\n".join(map(str, found))
            raise ComponentError(f"{self._title()} is not what the config expects:\n{lines}")
        print(f"{self._title()}: {asked.summary()}", flush=True)
        port = asked.info["disaggregation_bootstrap_port"] if self._kind == "prefill" else None
        tokens = Keys(keys["key_file"], keys["admin_key_file"])
        self._provided = engine_provides(
            self.url, self._kind, keys=tokens, model=self._model, dp_size=int(asked.info["dp_size"]),
            bootstrap_port=port,
        )  # fmt: skip
        if self._weight_sync is not None:
            ranks = int(asked.info["tp_size"])
            self._provided["weight_sink"] = make_sink(self.url, keys["admin_key_file"], ranks, self._weight_sync)
        return self._provided

    def renew(self) -> Provides:
        """Serve another job: what was provided. Its caches are its owner's, but for what a weight sync forgets."""
        return self._provided

    def failure(self) -> str | None:
        """None while it answers; a single silence is forgiven."""
        if self._client is None:
            return None
        self._failures = 0 if self._is_healthy() else self._failures + 1
        return f"{self._title()} does not answer /health" if self._failures >= _FAILURES else None

    def stop(self) -> None:
        """Leave it as it is."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _wait_healthy(self) -> None:
        limit = min(self._timeout_s, _PATIENCE_S)
        deadline = time.monotonic() + limit
        while not self._is_healthy():
            if time.monotonic() > deadline:
                raise DeadlineError(f"{self._title()} is not healthy after {limit:.0f} s; start it, or mend the URL")
            time.sleep(_POLL_S)

    def _is_healthy(self) -> bool:
        try:
            return self._client is not None and self._client.get("/health").status_code == 200
        except httpx.HTTPError:
            return False

    def _title(self) -> str:
        return f"external server {self._name} ({self._kind}, {self.url})"
