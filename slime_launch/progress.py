"""What the user sees while a run goes: what is awaited and for how long, then one line a step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status

from slime_launch.types import Metrics

_LINE_EVERY_S = 15.0

COLUMNS = (
    ("reward", "rollout/reward", "{:.3f}"),
    ("len", "rollout/response_len/mean", "{:.1f}"),
    ("loss", "train/loss", "{:+.4f}"),
    ("grad", "train/grad_norm", "{:.2f}"),
    ("gap", "train/train_rollout_logprob_abs_diff", "{:.1e}"),
    ("tok/s", "rollout/tokens_per_s", "{:.0f}"),
    ("sync", "perf/update_weights_time", "{:.2f}s"),
)


class Progress:
    """Prints to one console; on a terminal waits are a live line, elsewhere a line now and then."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._waiting = ""
        self._since = 0.0
        self._next_line = 0.0
        self._live: Status | None = None

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Show ``what`` as long as the block runs, with the seconds gone by; ``tick`` keeps it moving."""
        self._waiting, self._since = what, time.monotonic()
        self._next_line = self._since + _LINE_EVERY_S
        try:
            if self.console.is_terminal:
                with self.console.status(what) as self._live:
                    yield
            else:
                yield
        finally:
            self._live, self._waiting = None, ""

    def tick(self) -> None:
        """Refresh the wait that is on."""
        now = time.monotonic()
        text = f"{self._waiting}, {now - self._since:.0f} s"
        if self._live is not None:
            self._live.update(text)
        elif self._waiting and now >= self._next_line:
            self._next_line = now + _LINE_EVERY_S
            self.line(f"  ... {text}")

    def line(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def step(self, step: int, num_steps: int, metrics: Metrics) -> None:
        """One line for one step."""
        cells = [f"{name} {form.format(metrics[key])}" for name, key, form in COLUMNS if key in metrics]
        cells += [
            f"{key} {value:.3f}"
            for key, value in metrics.items()
            if key.startswith("eval/") and not key.endswith("greedy")
        ]
        width = len(str(num_steps))
        self.line(
            f"step {step:>{width}}/{num_steps}  " + "  ".join(cells) + f"  {metrics.get('perf/step_time', 0):.1f}s"
        )
