"""A data-parallel controller that sleeps while nobody asks: SGLang's spins on a core, whatever sleep_on_idle says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

LOOP_TARGET = "sglang.srt.managers.data_parallel_controller.DataParallelController.event_loop"
_WAIT_MS = 1000  # a fed watchdog bites after minutes


class WaitsForRequests:
    """The controller's watchdog, fed before each look at the socket; it lets the socket have something first."""

    def __init__(self, watchdog: Any, socket: Any) -> None:
        self._watchdog, self._socket = watchdog, socket

    def feed(self) -> None:
        """Feed the watchdog, and wait for a message, a second at most."""
        self._watchdog.feed()
        self._socket.poll(_WAIT_MS)


def wait_for_requests(original: Callable[..., Any], controller: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the original loop, which never blocks, on a watchdog that does."""
    controller.soft_watchdog = WaitsForRequests(controller.soft_watchdog, controller.recv_from_tokenizer)
    return original(controller, *args, **kwargs)
