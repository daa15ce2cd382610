"""``slime-launch -m``: check every job, hand them to Hydra's sweeper, and tell how they ended."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from hydra._internal.hydra import Hydra
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from slime_launch import job, signals
from slime_launch.compose import CONFIG_NAME, as_dict, compose, force_add, hydra_problems, loader_of, parse_overrides
from slime_launch.errors import ConfigError, Problem
from slime_launch.machine import Machine
from slime_launch.schema import SweepConfig
from slime_launch.schema.build import build
from slime_launch.sweep.ledger import Row, rows
from slime_launch.sweep.seal import BASIC_LAUNCHER
from slime_launch.sweep.space import jobs_to_check
from slime_launch.sweep.table import print_ranking, write_csv
from slime_launch.sweep.task import SweepStopped, SweepTask

if TYPE_CHECKING:
    from slime_launch.fleets import Kept

_EXCLUDED = "hydra.job.config.override_dirname.exclude_keys"


@dataclass(frozen=True)
class Order:
    """A checked sweep: what Hydra gets, and where it goes."""

    overrides: list[str]
    sweep_dir: Path
    mode: str
    in_process: bool
    keeps: bool


def sweep(hydra: Hydra, lines: list[str], machine: Machine) -> int:
    """Run a sweep to its end.

    Returns the exit code: 0 when every job completed, 1 when one did not, 130 or 143 on a signal. Raises ConfigError
    before any job has started when one of them cannot run.
    """
    order, invocation = plan_sweep(hydra, lines, machine), uuid.uuid4().hex
    stopped = _launch(hydra, order, SweepTask(lines, invocation, order.in_process, _keep(order)))
    found = rows(order.sweep_dir)
    mine = [row for row in found if row.record.invocation == invocation]
    if order.mode != "run":
        return stopped or max((row.record.code or 0 for row in mine), default=0)
    if found:
        write_csv(order.sweep_dir, found)
        print_ranking(found, order.sweep_dir, Console())
    return stopped or (0 if mine and all(map(_went_well, mine)) else 1)


def _keep(order: Order) -> Kept | None:
    if not order.keeps:
        return None
    from slime_launch.fleets import Kept

    return Kept()


def _went_well(row: Row) -> bool:
    return row.status in ("completed", "submitted")


def plan_sweep(hydra: Hydra, lines: list[str], machine: Machine) -> Order:
    """Check a sweep and every job that is known beforehand. Raises ConfigError with all problems."""
    overrides, found = parse_overrides(hydra, lines)
    fixed = [line.input_line or "" for line in overrides if not line.is_sweep_override()]
    base, more = compose(hydra, fixed, RunMode.MULTIRUN)
    found += more
    if base is not None:
        found += hydra_problems(base.hydra)
    if found or base is None:
        raise ConfigError(found)
    settings = _settings(base)
    in_process = base.hydra.launcher["_target_"] == BASIC_LAUNCHER
    sweeper = as_dict(base.hydra.sweeper, resolve=False)
    params, wrong = _params(hydra, sweeper.get("params") or {})
    spelled = {override.key_or_group: override.get_key_element() for override in params}
    swept = parse_overrides(hydra, [_spell(hydra, override, spelled) for override in overrides])[0]
    jobs = jobs_to_check([*params, *swept], sweeper, settings.max_jobs, loader_of(hydra)) if not wrong else []
    wrong += [problem for line in jobs for problem in job.check(hydra, line, machine)[1]]
    if base.cluster.base_port and not in_process:
        reason = "jobs that run side by side cannot have the same ports"
        wrong.append(Problem("cluster.base_port", base.cluster.base_port, reason, "leave it at 0"))
    if wrong:
        raise ConfigError(wrong)
    keeps = in_process and settings.keep_servers and base.mode == "run"
    given = [override.input_line or "" for override in swept]
    forced = _forced(base, [*params, *swept])
    return Order([*given, *forced], _sweep_dir(base), str(base.mode), in_process, keeps)


def _settings(base: DictConfig) -> SweepConfig:
    settings, found = build(SweepConfig, as_dict(base.sweep, resolve=True), "sweep")
    if settings is None:
        raise ConfigError(found)
    return settings  # type: ignore[no-any-return]


def _params(hydra: Hydra, params: dict[str, Any]) -> tuple[list[Override], list[Problem]]:
    """``hydra.sweeper.params`` as overrides; Hydra's own keys may not come in that way."""
    overrides, found = parse_overrides(hydra, [f"{key}={value}" for key, value in params.items()])
    found += [
        Problem(f"hydra.sweeper.params.{override.key_or_group}", "...", "not for Hydra's own keys", "remove it")
        for override in overrides
        if override.is_hydra_override()
    ]
    return overrides, found


def _spell(hydra: Hydra, override: Override, spelled: dict[str, str]) -> str:
    """As Hydra takes it; a key that is also in ``hydra.sweeper.params`` as it is written there, to replace it."""
    key, line = override.key_or_group, override.input_line or ""
    return f"{spelled[key]}={line.partition('=')[2]}" if key in spelled else force_add(loader_of(hydra), override)


def _sweep_dir(base: DictConfig) -> Path:
    return Path(os.path.abspath(str(OmegaConf.select(base, "hydra.sweep.dir"))))


def _forced(base: DictConfig, overrides: list[Override]) -> list[str]:
    """Overrides of Hydra's own node that the sweep needs."""
    constant = [override.key_or_group for override in overrides if not override.is_sweep_override()]
    excluded = [*OmegaConf.select(base, _EXCLUDED), *constant]
    forced = [
        f"hydra.mode={RunMode.MULTIRUN.name}",
        f"hydra.sweep.dir={_quoted(str(_sweep_dir(base)))}",  # one folder, whatever a job's own config says
        f"{_EXCLUDED}=[{','.join(map(_quoted, excluded))}]",
    ]
    sampler = base.hydra.sweeper.get("sampler") or {}
    if "seed" in sampler and sampler["seed"] is None:
        forced.append(f"hydra.sweeper.sampler.seed={base.seed}")  # so that the sweep run again asks for the same jobs
    return forced


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()


def _launch(hydra: Hydra, order: Order, task: SweepTask) -> int:
    """Returns the exit code of the signal that stopped the sweep, 0 when none did."""
    logging.getLogger("hydra_plugins").setLevel(logging.ERROR)  # a job that fails says so itself
    listening = signals.listening if order.in_process else _raising
    try:
        with listening():
            hydra.multirun(config_name=CONFIG_NAME, task_function=task, overrides=order.overrides)
    except (SweepStopped, signals.Stopped) as stop:
        return stop.code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:  # of a plugin: the jobs have told of themselves in their folders
        if order.mode == "run":
            print(f"the sweep ended: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
    finally:
        if task.keep is not None:
            task.keep.close()
    return 0


@contextmanager
def _raising() -> Iterator[None]:
    """SIGTERM and SIGHUP as an exception, for launchers that wait in code which does not look."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SweepStopped(128 + number)

    old = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
