"""A Ray cluster that is there already: joined for the time of a run, never started and never stopped."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Annotated

from slime_launch.cluster.backend import Request
from slime_launch.cluster.environment import actor_environment, token_environment
from slime_launch.cluster.session import ray_session
from slime_launch.errors import ComponentError
from slime_launch.schema.fields import Seconds, about

_TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_START_S = 30.0  # of a Python that imports ray, on a busy machine
_ANSWERED = 10
_ASK = f"""
import sys
from ray._raylet import GcsClient
GcsClient(address=sys.argv[1]).internal_kv_keys(b"", namespace=b"slime-launch", timeout=float(sys.argv[2]))
sys.exit({_ANSWERED})
"""


class Joined:
    """Connection: nothing on this machine is ours because of it."""

    def processes(self) -> list[int]:
        """None."""
        return []


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """Backend: connects to a cluster that someone else runs; what is left of a run there is nothing.

    Every node needs the same Python environment and house at the same path, and to see the run folder.
    """

    address: Annotated[str, about("host:port of Ray's head, or auto: RAY_ADDRESS, or the cluster of this machine.")] = (
        "auto"
    )
    token_file: Annotated[
        str | None, about("File with the cluster's token; null: where Ray looks, RAY_AUTH_TOKEN_PATH for one.")
    ] = None
    allow_unauthenticated: Annotated[bool, about("Join a cluster that asks nobody for a token.")] = False
    connect_timeout_s: Annotated[Seconds, about("Longest wait for the head's answer.", "s")] = 20.0

    @contextmanager
    def connect(self, request: Request) -> Iterator[Joined]:
        """See Backend. Raises ComponentError for a cluster that is not there, refuses the token, or is open to all."""
        address = self._address()
        without = {name: value for name, value in os.environ.items() if name not in _TOKEN_VARIABLES}
        if _refusal(address, without | {"RAY_AUTH_MODE": "disabled"}, self.connect_timeout_s) is None:
            self._accept_open(address)
        else:
            _set_token(self.token_file)
            if (refusal := _refusal(address, os.environ, self.connect_timeout_s)) is not None:
                raise ComponentError(f"the Ray cluster at {address} cannot be joined: {refusal}")
        with ray_session(address, worker_env=actor_environment(request.allow_targets)):
            yield Joined()

    def _address(self) -> str:
        if "://" in self.address:
            raise ComponentError(
                f"cluster.backend.address={self.address}: give host:port; Ray's client is not supported"
            )
        if self.address != "auto":
            return self.address
        from ray._private.services import canonicalize_bootstrap_address

        found = canonicalize_bootstrap_address("auto")
        if not found:
            raise ComponentError("no Ray cluster on this machine; give cluster.backend.address=host:port")
        return str(found)

    def _accept_open(self, address: str) -> None:
        text = f"the Ray cluster at {address} asks nobody for a token: whoever reaches it runs code as its user"
        if not self.allow_unauthenticated:
            raise ComponentError(
                f"{text}; start it with RAY_AUTH_MODE=token, or set cluster.backend.allow_unauthenticated=true"
            )
        print(f"warning: {text}", file=sys.stderr)
        os.environ["RAY_AUTH_MODE"] = "disabled"


def _set_token(token_file: str | None) -> None:
    if token_file is not None:
        file = Path(token_file).expanduser().resolve()
        if not file.is_file():
            raise ComponentError(f"cluster.backend.token_file={token_file}: no such file")
        os.environ.update(token_environment(file))
        os.environ.pop("RAY_AUTH_TOKEN", None)  # would win over the file
    os.environ["RAY_AUTH_MODE"] = "token"


def _refusal(address: str, env: Mapping[str, str], timeout_s: float) -> str | None:
    """Why the head does not answer, None where it does.

    Asked in a process of its own, since Ray keeps its token and tries for longer than anybody wants to wait.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout_s).close()
    except (OSError, ValueError) as error:
        return f"{error}; check cluster.backend.address"
    patience = {"RAY_py_gcs_connect_timeout_s": str(ceil(timeout_s))}
    argv = [sys.executable, "-P", "-c", _ASK, address, str(timeout_s)]
    try:
        done = subprocess.run(argv, env=dict(env) | patience, capture_output=True, timeout=timeout_s + _START_S)
        code, said = done.returncode, done.stderr
    except subprocess.TimeoutExpired as error:
        code, said = 1, error.stderr or b""
    if code == _ANSWERED:
        return None
    text = said.decode(errors="replace")
    if "authenticat" in text.lower():
        return "it wants a token, and there is none or another one; give cluster.backend.token_file"
    last = (text.strip().splitlines() or ["no answer"])[-1]
    return f"{last[:300]}; check cluster.backend.address"
