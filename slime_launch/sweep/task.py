"""What Hydra calls for each job of a sweep, in this process or in a launcher's: skip what is finished, run the rest."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from slime_launch import signals
from slime_launch.checkpoints import newest
from slime_launch.checks import problems
from slime_launch.compose import Composed, validate
from slime_launch.errors import ConfigError, LaunchError, Problem
from slime_launch.machine import Machine, read_machine
from slime_launch.manifest import ForeignError
from slime_launch.modes import MODES, Job
from slime_launch.resume import AUTO
from slime_launch.sweep.identity import job_hash, register_resolvers
from slime_launch.sweep.ledger import JobRecord, completed, read_record, read_summary, refuse, set_aside

if TYPE_CHECKING:
    from slime_launch.fleets import Kept

_SIGNALLED = 128
_REFUSED = 2

register_resolvers()


class SweepStopped(BaseException):
    """A signal stopped a job, and the sweep with it; ``code`` is the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class SweepTask:
    """One sweep's task function; it pickles, for launchers with processes of their own.

    lines: the command line. invocation: of the command. in_process: jobs run here, one after the other, and may keep
    servers for each other.
    """

    lines: list[str]
    invocation: str
    in_process: bool
    keep: Kept | None = None

    def __call__(self, config: DictConfig) -> float | None:
        """Carry out one job; returns the score, higher is better, or None where there is none.

        Raises SweepStopped.
        """
        if self.in_process:
            signals.check()
        node = cast(DictConfig, HydraConfig.get())
        folder, mine = Path(node.runtime.output_dir), job_hash(config)
        overrides = tuple(cast(list[str], OmegaConf.to_container(node.overrides.task)))
        record = JobRecord(hash=mine, overrides=overrides, invocation=self.invocation)
        summary = completed(folder, mine) if config.mode == "run" else None
        if summary is not None:
            replace(record, code=0).write(folder)
            print(f"{folder.name}: done already, skipped", flush=True)
            return summary.eval_after
        print(f"job {node.job.num + 1}: {folder.name}", flush=True)
        code = self._attempt(config, node, folder, record)
        replace(record, code=code).write(folder)
        if code >= _SIGNALLED and self.in_process:
            raise SweepStopped(code)
        summary = read_summary(folder) if code == 0 else None
        return None if summary is None else summary.eval_after

    def _attempt(self, config: DictConfig, node: DictConfig, folder: Path, record: JobRecord) -> int:
        """Check again, since Optuna may ask for what no check has seen, and do what the mode says."""
        machine = read_machine()
        try:
            composed, found = validate(config, node, self.lines)
            if composed is None:
                raise ConfigError(found)
            if found := list(problems(composed.config, machine)):
                raise ConfigError(found)
            return self._run(composed, machine, folder, record)
        except (LaunchError, OSError) as error:  # a run tells its own failures; this one came before it
            print(error, file=sys.stderr)
            record.write(folder)
            refuse(folder, str(error))
            return _REFUSED

    def _run(self, composed: Composed, machine: Machine, folder: Path, record: JobRecord) -> int:
        mode = composed.config.mode
        if mode == "run" and prepare(folder, record.hash, composed.config.trainer.num_steps):
            composed = replace(composed, config=replace(composed.config, resume=AUTO))
        record.write(folder)
        return MODES[mode](Job(composed, machine, folder, Console(), self.keep))


def prepare(folder: Path, job: str, num_steps: int) -> bool:
    """Look at what another attempt of this job left in its folder; a folder of something else is left alone.

    Returns whether there is a checkpoint to go on from; without one the leavings are put aside.
    """
    before = read_record(folder)
    if before is None or before.hash != job:
        return False
    try:
        saved = newest(folder)[0]
    except ForeignError as error:
        raise ConfigError([Problem("sweep", folder, str(error), "remove the folder, or its checkpoints")]) from None
    if saved is not None and saved.state.step < num_steps:
        print(f"{folder.name}: was not finished, goes on after step {saved.state.step}", flush=True)
        return True
    if aside := set_aside(folder):
        print(f"{folder.name}: was not finished, starts again from scratch; what it left is in {aside}", flush=True)
    return False
