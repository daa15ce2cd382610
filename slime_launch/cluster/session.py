"""This process as the driver of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from slime_launch import signals


@contextmanager
def ray_session(address: str, worker_env: Mapping[str, str] | None = None) -> Iterator[None]:
    """Connect while the block runs; Ray ends our actors when it is left.

    worker_env: environment of our actors beside the one that their node has. Raises ConnectionError when the cluster
    does not answer.
    """
    import ray

    raylet: Any = ray._raylet
    # both are read once a process; the cluster before may have had another token
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
    env = {"runtime_env": {"env_vars": dict(worker_env)}} if worker_env else {}
    try:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error", configure_logging=False, **env)
        finally:
            signals.install()
        yield
    finally:
        ray.shutdown()
