"""A server that someone else runs: asked who it is before it is used, never started or stopped."""

from __future__ import annotations

from typing import Any

from slime_launch.errors import ComponentError
from slime_launch.interfaces import Needs, Provides


class ExternalServer:
    """One server of ``rollout.topology.groups.<name>.urls`` (Component)."""

    def __init__(self, **args: Any) -> None:
        self._args = args

    def start(self, needs: Needs) -> Provides:
        """Ask for model, parallelism and version."""
        raise ComponentError(f"server {self._args['name']}: external engines are not built yet")

    def failure(self) -> str | None:
        """What broke."""
        return None

    def stop(self) -> None:
        """Leave it as it is."""
