"""What the loop asks of a rollout's samples before they are trained on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from slime_launch.driver import Loop, Outcome, train
from slime_launch.errors import ComponentError
from slime_launch.progress import Progress
from slime_launch.records import Records
from slime_launch.schema import Config, RolloutConfig, TrainerConfig
from slime_launch.schema.rollout import PartialConfig
from slime_launch.types import UNSAMPLED, Prompt, Sample

LIMIT_S = 7200.0


class Made:
    """A rollout whose samples carry the versions that the test gives for each step."""

    def __init__(self, versions: list[list[int]], **metrics: float) -> None:
        self.versions, self.metrics = versions, metrics

    def generate(self, step: int) -> tuple[list[Sample], dict[str, float]]:
        sample = Sample(0, 0, Prompt([], ""), "", [1])
        sample.weight_versions = self.versions[step - 1]
        return [sample], self.metrics

    def evaluate(self, step: int) -> dict[str, float]:
        baseline = {"eval/other": 0.9, "eval/other/greedy": 0.9, "eval/other/unanswered": 0.0, "eval/other/pass@4": 1.0}
        ours = {"eval/set": 0.5, "eval/set/greedy": 0.25, "eval/set/pass@4": 1.0, "eval/set/dropped/late": 3.0}
        return ours | baseline | {"eval/refused_answers/engine-0": 1.0}


class Here:
    """A fleet in this process; its one encoder counts as the test says."""

    def __init__(self, rollout: Made, encoded: list[int]) -> None:
        trainer = SimpleNamespace(
            train=lambda *_: {}, sync=lambda *_: {}, save_hf=lambda *_: None, encoder_requests=lambda: encoded.pop(0)
        )
        self.components: dict[str, Any] = {"trainer": trainer, "rollout": rollout} | (
            {"encoder": trainer} if encoded else {}
        )
        self.plan = SimpleNamespace(
            of_kind=lambda kind: [SimpleNamespace(name=kind)] if kind in self.components else []
        )

    def call(self, names: list[str], method: str, *args: Any, what: str, timeout_s: float) -> list[Any]:
        if method in ("generate", "evaluate"):
            assert timeout_s == LIMIT_S and "rollout.timeout_s" in what
        return [getattr(self.components[name], method)(*args) for name in names]


def drive(
    folder: Path, monkeypatch: pytest.MonkeyPatch, rollout: Made, partial: PartialConfig | None = None, *encoded: int
) -> Outcome:
    monkeypatch.setattr("ray.put", lambda value: value)
    steps = TrainerConfig(num_steps=len(rollout.versions))
    config = Config(rollout=RolloutConfig(partial=partial or PartialConfig(), timeout_s=LIMIT_S), trainer=steps)
    fleet, records = Here(rollout, list(encoded)), Records(folder)
    loop = Loop(config, fleet, records, [], Progress(Console(quiet=True)), folder, Outcome())  # type: ignore[arg-type]
    try:
        train(loop)
    finally:
        records.close()
    return loop.outcome


KEEP = PartialConfig(keep=True, max_lag=2)


@pytest.mark.parametrize(
    ("versions", "partial", "said"),
    [
        ([[0, 0], [1, UNSAMPLED]], None, None),
        ([[0, 0], [0, 1]], None, r"step 2: samples made by weight versions \[0\], expected 1"),
        ([[1]], None, r"step 1: samples made by weight versions \[1\], expected 0"),
        ([[0], [0, 1], [0, 1, 2]], KEEP, None),
        ([[0], [1], [2], [0, 3]], KEEP, r"step 4: samples made by weight versions \[0\], expected 1 to 3"),
        ([[0], [2]], KEEP, r"step 2: samples made by weight versions \[2\], expected -1 to 1"),
    ],
)
def test_tokens_come_from_weights_that_are_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, versions: list[list[int]], partial: PartialConfig | None, said: str
) -> None:
    if said is None:
        outcome = drive(tmp_path, monkeypatch, Made(versions), partial)
        assert (outcome.steps, outcome.eval_after, outcome.greedy_after) == (len(versions), 0.5, 0.25)
    else:
        with pytest.raises(ComponentError, match=said):
            drive(tmp_path, monkeypatch, Made(versions), partial)


@pytest.mark.parametrize(
    ("sent", "cut", "encoded", "fine"),
    [(6, 0, 6, True), (6, 0, 5, False), (6, 3, 5, True), (6, 3, 0, False), (6, 0, 7, True)],
)
def test_encoders_saw_what_was_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: int, cut: int, encoded: int, fine: bool
) -> None:
    """Every image, but for requests that were cut short, which may not have come so far; others may have sent more."""
    rollout = Made([[0]], **{"rollout/images_sent": float(sent), "rollout/partial/cut": float(cut)})
    if fine:
        drive(tmp_path, monkeypatch, rollout, None, 100, 100 + encoded)
    else:
        with pytest.raises(ComponentError, match=f"6 images were sent and the encoders counted {encoded}"):
            drive(tmp_path, monkeypatch, rollout, None, 100, 100 + encoded)
