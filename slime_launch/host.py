"""The one Ray actor class: hosts whatever component a plan's actor names, with its output in the run folder's logs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slime_launch.errors import ComponentError, LaunchError
from slime_launch.interfaces import Component
from slime_launch.targets import instantiate


class Host:
    """Lives in the actor's process; the working directory is the run folder."""

    def __init__(self, name: str, component: str, args: Mapping[str, Any], run_dir: str) -> None:
        os.chdir(run_dir)
        self._name = name
        self._log = Path("logs", f"{name}.log")
        _redirect_output(self._log)
        self._component: Component = instantiate({"_target_": component, **args})

    def ready(self) -> None:
        """Return once the constructor is through."""

    def start(self, needs: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Start the component."""
        return dict(self._guarded(self._component.start, needs))

    def failure(self) -> str | None:
        """What broke, None while healthy."""
        return self._component.failure()

    def stop(self) -> None:
        """Stop the component."""
        self._component.stop()

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call one of the component's own methods."""
        return self._guarded(getattr(self._component, method), *args, **kwargs)

    def _guarded(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Errors of ours pass as they are; any other becomes one that pickles and names actor and log."""
        try:
            return function(*args, **kwargs)
        except LaunchError:
            raise
        except Exception as error:
            import traceback

            traceback.print_exc()
            raise ComponentError(
                f"{self._name} failed: {type(error).__name__}: {error}; the traceback is in {self._log.resolve()}"
            ) from None


def _redirect_output(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)  # Ray's own streams would go to its session folder
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
