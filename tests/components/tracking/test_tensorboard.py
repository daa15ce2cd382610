"""TensorBoard reads back what was logged."""

from pathlib import Path

import pytest

from components.tracking.tensorboard import TensorBoard


def test_points_come_back(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracker = TensorBoard(str(tmp_path))
    tracker.log(1, {"rollout/reward": 0.25})
    tracker.log(2, {"rollout/reward": 0.5})
    tracker.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(point.step, point.value) for point in events.Scalars("rollout/reward")] == [(1, 0.25), (2, 0.5)]
