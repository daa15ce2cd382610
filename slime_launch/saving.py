"""When a loop's state is saved, and taken up again: between the driver's steps and the checkpoints on disk."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from slime_launch.checkpoints import Checkpoints, RunState
from slime_launch.interfaces import Restored
from slime_launch.resume import named
from slime_launch.types import Metrics

if TYPE_CHECKING:
    from slime_launch.driver import Loop


class Saving:
    """Begins a save after a step and completes it after a later one; training goes on meanwhile."""

    def __init__(self, loop: Loop) -> None:
        config = loop.config.trainer
        self._loop = loop
        self._interval, self._hf_interval = config.checkpoint.interval, config.checkpoint.hf_interval
        self._num_steps = config.num_steps
        self._span = 0 if config.optim.schedule == "constant" else config.num_steps * config.num_minibatches
        self._checkpoints = Checkpoints(loop.run_dir, config.checkpoint.keep_last)
        self._under_way: RunState | None = None

    def restore(self) -> int:
        """Take up what the run starts from, and say what that was; returns the last step that is done.

        Raises ComponentError when the checkpoint does not fit the run, or the data source cannot tell its position.
        """
        loop, saved = self._loop, self._loop.start.saved
        for note in loop.start.notes:
            loop.progress.line(note)
        weights_from = loop.config.trainer.checkpoint.weights_from
        if saved is not None:
            restored = loop.load(str(saved.folder), weights_only=False)
            loop.set_data_position(saved.state.data)
            loop.outcome.steps = saved.state.step
            loop.outcome.eval_before, loop.outcome.eval_after = saved.state.eval_before, saved.state.eval_after
            loop.progress.line(f"resume: {saved.folder}: {told(saved.state, restored, self._num_steps)}")
            if saved.state.span != self._span:
                loop.progress.line(jump(saved.state.span, self._span))
        elif weights_from is not None:
            folder = named("trainer.checkpoint.weights_from", weights_from).folder
            loop.load(str(folder), weights_only=True)
            loop.progress.line(f"start: the weights of {folder}")
        if self._interval:
            loop.data_position()  # a source that has none shall say so now, not after hours
        return loop.start.step

    def after(self, step: int) -> Metrics:
        """Complete the save under way if it can be, begin the one that is due; returns the seconds that this took."""
        began = time.perf_counter()
        due = bool(self._interval) and (step % self._interval == 0 or step == self._num_steps)
        exports = bool(self._hf_interval) and step % self._hf_interval == 0
        if not (self._under_way or due or exports):
            return {}
        self.complete(wait=due)
        if due:
            self._begin(step)
        if exports:
            self._loop.export(f"hf_{step}")
        return {"perf/checkpoint_time": time.perf_counter() - began}

    def complete(self, wait: bool) -> None:
        """Make the save under way a checkpoint if its files are written, or, with ``wait``, once they are."""
        if self._under_way is None:
            return
        files = self._loop.finish_save(wait)
        if files is not None:
            self._checkpoints.commit(self._under_way, files)
            self._under_way = None

    def _begin(self, step: int) -> None:
        loop = self._loop
        state = RunState(
            step=step, seed=loop.config.seed, data=loop.data_position(),
            eval_before=loop.outcome.eval_before, eval_after=loop.outcome.eval_after, span=self._span,
        )  # fmt: skip
        loop.begin_save(str(self._checkpoints.begin(step).absolute()))
        self._under_way = state


def told(state: RunState, restored: Restored, num_steps: int) -> str:
    """One line: what was restored and what comes next."""
    told: dict[str, Any] = state.data.get("data", state.data)
    plain = [f"{name} {value}" for name, value in told.items() if isinstance(value, int | float)]
    held = [f"{len(groups)} groups begun"] if (groups := state.data.get("held")) else []
    position = ", ".join(plain + held) or "restored"
    generators = "random generators restored" if restored.rng else "random generators anew (another layout)"
    return (
        f"step {state.step}, seed {state.seed}, data position ({position}), "
        f"optimizer after {restored.updates} updates, {generators}; going on with step {state.step + 1} of {num_steps}"
    )


def jump(before: int, now: int) -> str:
    """One line: the learning rate does not go on as if the run had not stopped; see ``RunState.span``."""
    old, new = (f"spans {span} updates" if span else "is constant" for span in (before, now))
    return (
        f"resume: the learning rate jumps, since its schedule {new} now, and before {old}; it goes on smoothly with "
        "the trainer.num_steps, num_minibatches and optim.schedule of before"
    )
