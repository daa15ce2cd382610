"""This process as the driver of a Ray cluster."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from slime_launch.errors import ComponentError

_AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_last: list[dict[str, str | None]] = []


@contextmanager
def ray_session(address: str, worker_env: Mapping[str, str] | None = None) -> Iterator[None]:
    """Connect while the block runs; Ray ends our actors when it is left.

    worker_env: environment of our actors beside the one that their node has. Raises ComponentError when Ray does not
    take this process, for one because this machine is none of the cluster's.
    """
    import ray

    read_auth_anew()
    handlers = {number: signal.getsignal(number) for number in _NUMBERS}
    env = {"runtime_env": {"env_vars": dict(worker_env)}} if worker_env else {}
    try:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error", configure_logging=False, **env)
        except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
            raise ComponentError(f"Ray at {address} cannot be joined: {' '.join(str(error).split())[:500]}") from error
        finally:
            for number, handler in handlers.items():  # ray.init puts in its own
                signal.signal(number, handler)
        yield
    finally:
        ray.shutdown()


def read_auth_anew() -> None:
    """Have Ray forget how the cluster before was reached, if this one is reached otherwise: it reads that once."""
    import ray

    raylet: Any = ray._raylet
    now = {name: os.environ.get(name) for name in _AUTH}
    if _last != [now]:
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()
    _last[:] = [now]
