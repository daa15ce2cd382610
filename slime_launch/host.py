"""The one Ray actor class: hosts whatever component a plan's actor names, with its output in the run folder's logs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slime_launch.errors import ComponentError, LaunchError
from slime_launch.interfaces import Component, Renewable
from slime_launch.network import interface_of
from slime_launch.targets import instantiate


@dataclass(frozen=True)
class Site:
    """What an actor finds where it sits: the GPUs that it may use, as CUDA names them, and its node's address."""

    devices: tuple[str, ...]
    address: str

    def environment(self) -> dict[str, str]:
        """Variables that libraries read before they touch a GPU or open a socket.

        Those that the node has set itself stay, but for the devices.
        """
        interface = interface_of(self.address)
        chosen = {name: interface for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if interface}
        kept = {name: value for name, value in chosen.items() if name not in os.environ}
        # an index counts in PCI order, as Ray and nvidia-smi count, not in CUDA's fastest-first order
        return kept | {"CUDA_VISIBLE_DEVICES": ",".join(self.devices), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


class Host:
    """Lives in the actor's process; the working directory is the run folder."""

    def __init__(self, name: str, component: str, args: Mapping[str, Any], run_dir: str, site: Site) -> None:
        os.chdir(run_dir)
        os.environ.update(site.environment())
        self._name = name
        self._log = Path("logs", f"{name}.log")
        _redirect_output(self._log)
        self._component: Component = instantiate({"_target_": component, **args})

    def ready(self) -> None:
        """Return once the constructor is through."""

    def start(self, needs: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Start the component."""
        return dict(self._guarded(self._component.start, needs))

    def renew(self) -> None:
        """Ready a component that another run left running, where it has to be."""
        if isinstance(self._component, Renewable):
            self._guarded(self._component.renew)

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
