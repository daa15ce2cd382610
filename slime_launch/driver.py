"""The training loop, written against the plan's interfaces: evaluate, generate, train, sync, again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slime_launch.errors import ComponentError
from slime_launch.interfaces import UNANSWERED, Restored, Tracker
from slime_launch.launch import Fleet
from slime_launch.manifest import Manifest
from slime_launch.media import packed
from slime_launch.progress import Progress
from slime_launch.records import Records
from slime_launch.resume import Start
from slime_launch.saving import Saving
from slime_launch.schema import Config
from slime_launch.schema.rollout import PartialConfig
from slime_launch.types import UNSAMPLED, Metrics, Sample

_POSITION_TIMEOUT_S = 300.0


@dataclass
class Outcome:
    """How far a run came; scores are fractions."""

    steps: int = 0
    eval_before: float | None = None
    eval_after: float | None = None
    greedy_after: float | None = None


@dataclass
class Loop:
    """What one run's loop works with."""

    config: Config
    fleet: Fleet
    records: Records
    trackers: list[Tracker]
    progress: Progress
    run_dir: Path
    outcome: Outcome
    start: Start = field(default_factory=Start)

    def __post_init__(self) -> None:
        plan = self.fleet.plan
        self._trainers = [actor.name for actor in plan.of_kind("trainer")]
        self._encoders = [actor.name for actor in plan.of_kind("encoder")]
        self._rollout = [actor.name for actor in plan.of_kind("rollout")]

    def generate(self, step: int) -> tuple[list[Sample], Metrics]:
        """One scored rollout batch."""
        before = self._encoded()
        samples, metrics = self.fleet.call(
            self._rollout, "generate", step, what=f"step {step}: generating (rollout.timeout_s)",
            timeout_s=self.config.rollout.timeout_s,
        )[0]  # fmt: skip
        if not self._encoders:
            return samples, metrics
        encoded = self._encoded() - before
        sent, cut = metrics["rollout/images_sent"], metrics.get("rollout/partial/cut", 0.0)
        # a request that is cut short may not have reached its encoder yet, and who evaluates from outside adds his own
        if encoded < (min(sent, 1) if cut else sent):
            raise ComponentError(
                f"step {step}: {sent:.0f} images were sent and the encoders counted {encoded}; "
                "the engines must have used towers of their own"
            )
        return samples, metrics | {"rollout/encoder_requests": float(encoded)}

    def _encoded(self) -> int:
        if not self._encoders:
            return 0
        return sum(
            self.fleet.call(self._encoders, "encoder_requests", what="counting encoder requests", timeout_s=30.0)
        )

    def evaluate(self, step: int) -> Metrics:
        """Scores of every held-out set."""
        what, timeout_s = "evaluating (rollout.timeout_s)", self.config.rollout.timeout_s
        return self._metrics(self._rollout, "evaluate", step, what=what, timeout_s=timeout_s)

    def train(self, step: int, samples: list[Sample]) -> Metrics:
        """One optimizer step on every rank."""
        import ray

        batch = ray.put(packed(samples))
        timeout_s = self.config.trainer.timeout_s
        return self._metrics(self._trainers, "train", step, batch, what="training", timeout_s=timeout_s)

    def sync(self, version: int) -> Metrics:
        """The trainer's weights into every engine."""
        timeout_s = self.config.trainer.timeout_s
        return self._metrics(self._trainers, "sync", version, what="sending weights", timeout_s=timeout_s)

    def _metrics(
        self, names: Sequence[str], method: str, step: int, *args: Any, what: str, timeout_s: float
    ) -> Metrics:
        """Call all the actors of ``names``; the first one's answer counts (of the trainers, rank 0)."""
        answers = self.fleet.call(names, method, step, *args, what=f"step {step}: {what}", timeout_s=timeout_s)
        metrics: Metrics = answers[0]
        return metrics

    def export(self, name: str) -> None:
        """The weights, as a Hugging Face checkpoint in the run folder."""
        self._all_trainers("save_hf", str(self.run_dir / name), what=f"writing {name}/")

    def begin_save(self, folder: str) -> None:
        """Every rank's training state into an empty folder, written while the loop goes on."""
        self._all_trainers("save", folder, what="copying the training state")

    def finish_save(self, wait: bool) -> Manifest | None:
        """The files of the save under way; None when it goes on and ``wait`` is false."""
        files: Manifest | None = self._all_trainers("finish_save", wait, what="writing the checkpoint")[0]
        return files

    def load(self, folder: str, weights_only: bool) -> Restored:
        """A saved training state into every rank."""
        restored: Restored = self._all_trainers("load", folder, weights_only, what=f"loading {folder}")[0]
        return restored

    def _all_trainers(self, method: str, *args: Any, what: str) -> list[Any]:
        return self.fleet.call(self._trainers, method, *args, what=what, timeout_s=self.config.trainer.timeout_s)

    def data_position(self) -> dict[str, Any]:
        """Where the training prompts stand."""
        position: dict[str, Any] = self.fleet.call(
            self._rollout, "state_dict", what="asking for the data position", timeout_s=_POSITION_TIMEOUT_S
        )[0]
        return position

    def set_data_position(self, position: dict[str, Any]) -> None:
        """Go on with the prompts from there."""
        self.fleet.call(
            self._rollout, "load_state_dict", position, what="setting the data position",
            timeout_s=_POSITION_TIMEOUT_S,
        )  # fmt: skip

    def log(self, step: int, metrics: Metrics) -> None:
        """Record and show one step."""
        self.records.metrics(step, metrics)
        for tracker in self.trackers:
            tracker.log(step, metrics)
        self.progress.step(step, self.config.trainer.num_steps, metrics)


def score(metrics: Metrics, greedy: bool = False) -> float:
    """Mean over the evaluation sets that the actor answers, sampled or greedy."""
    sampled = [k for k in metrics if k.startswith("eval/") and k.count("/") == 1 and f"{k}/{UNANSWERED}" not in metrics]
    values = [metrics[f"{k}/greedy" if greedy else k] for k in sampled]
    return sum(values) / len(values)


def train(loop: Loop) -> None:
    """The synchronous loop: every token of a step comes from the weights of the step before, or, where partial
    rollouts are kept, from those of a few before."""
    saving, num_steps = Saving(loop), loop.config.trainer.num_steps
    done = saving.restore()
    metrics = loop.sync(done)
    if not done:
        metrics |= _evaluate(loop, 0) | {"rollout/weight_version": 0.0}
        loop.outcome.eval_before = loop.outcome.eval_after
        loop.log(0, metrics)
    for step in range(done + 1, num_steps + 1):
        metrics = _step(loop, step)
        loop.outcome.steps = step
        loop.log(step, metrics | saving.after(step))
    saving.complete(wait=True)
    loop.outcome.greedy_after = score(metrics, greedy=True)
    loop.export("hf")


def _step(loop: Loop, step: int) -> Metrics:
    """Generate, train, send the weights; evaluate when it is time."""
    began, interval = time.monotonic(), loop.config.driver.eval_interval
    samples, metrics = loop.generate(step)
    _check_versions(step, samples, loop.config.rollout.partial)
    metrics |= loop.train(step, samples) | loop.sync(step)
    took = time.monotonic() - began
    known = sum(metrics.get(f"perf/{part}_time", 0.0) for part in ("rollout", "reward", "train", "update_weights"))
    metrics |= {"perf/step_time": took, "perf/overhead_time": took - known}
    loop.records.samples(step, samples)
    if step == loop.config.trainer.num_steps or (interval and step % interval == 0):
        metrics |= _evaluate(loop, step)
    return metrics


def _check_versions(step: int, samples: Sequence[Sample], partial: PartialConfig) -> None:
    """Raises ComponentError for tokens of weights that no token of this step may come from."""
    oldest = step - 1 - (partial.max_lag if partial.keep else 0)
    made_by = {version for sample in samples for version in sample.weight_versions} - {UNSAMPLED}
    if stale := made_by - set(range(oldest, step)):
        expected = step - 1 if oldest == step - 1 else f"{oldest} to {step - 1}"
        raise ComponentError(f"step {step}: samples made by weight versions {sorted(stale)}, expected {expected}")


def _evaluate(loop: Loop, step: int) -> Metrics:
    metrics = loop.evaluate(step)
    loop.outcome.eval_after = score(metrics)
    return metrics
