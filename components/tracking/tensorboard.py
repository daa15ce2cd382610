"""Metrics as TensorBoard events, under the names of metrics.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slime_launch.errors import ComponentError

if TYPE_CHECKING:
    from slime_launch.types import Metrics


class TensorBoard:
    """Writes to ``<run folder>/tensorboard``. Raises ComponentError when the package is not installed."""

    def __init__(self, run_dir: str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ComponentError("tracking=tensorboard needs the package: pip install tensorboard") from error
        self._writer = SummaryWriter(str(Path(run_dir, "tensorboard")))

    def log(self, step: int, metrics: Metrics) -> None:
        """One point a metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush."""
        self._writer.close()
