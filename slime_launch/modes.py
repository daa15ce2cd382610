"""What ``mode`` does with a config that passed every check: show its plan, look deeper, or run it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console

from slime_launch.cluster.backend import Scheduler
from slime_launch.cluster.submission import submission
from slime_launch.compose import Composed
from slime_launch.errors import ConfigError, Problem
from slime_launch.machine import Machine, free_ports
from slime_launch.model_files import read_hf_config
from slime_launch.plan import LaunchPlan, read_plan
from slime_launch.resolve import resolve
from slime_launch.resume import choose
from slime_launch.targets import grant, instantiate

if TYPE_CHECKING:
    from slime_launch.fleets import Kept


@dataclass(frozen=True)
class Job:
    """One checked config on this machine, and the folder it writes to; ``keep`` is what jobs in turn share."""

    composed: Composed
    machine: Machine
    run_dir: Path
    console: Console
    keep: Kept | None = None


def make_plan(job: Job, base_port: int = 0) -> LaunchPlan:
    """The plan, on the ports that the config asks for, or from ``base_port`` on, or on a free block."""
    config = job.composed.config
    hf, kept = read_hf_config(config)[0], job.keep.base_port if job.keep else 0
    base = config.cluster.base_port or base_port or kept
    if not base:
        base = free_ports(resolve(config, job.machine, 0, hf).cluster.num_ports)[0]
    return resolve(config, job.machine, base, hf)


def show_plan(job: Job) -> int:
    """mode=plan: write plan.json, print it, or what differs from another plan."""
    config = job.composed.config.plan
    if config.diff is not None:
        return _show_differences(job, config.diff)
    from slime_launch.views import mermaid, print_plan

    plan = make_plan(job)
    plan.write(job.run_dir / "plan.json")
    if config.format == "table":
        print_plan(plan, job.console)
    else:
        print(plan.to_json() if config.format == "json" else mermaid(plan))
    return 0


def _show_differences(job: Job, given: str) -> int:
    from slime_launch.views import differences

    file = Path(given).expanduser()
    file = file / "plan.json" if file.is_dir() else file
    try:
        old = read_plan(file)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            [Problem("plan.diff", given, f"no plan ({error})", "name a run folder or plan.json")]
        ) from error
    new = make_plan(job, old.cluster.base_port)
    new.write(job.run_dir / "plan.json")
    for line in differences(old, new) or [f"no difference from {file}"]:
        print(line)
    return 0


def check(job: Job) -> int:
    """mode=check: the plan, then everything that imports can tell, and a few rendered prompts. Starts nothing."""
    from slime_launch.preflight import look_deeper
    from slime_launch.views import print_plan

    grant(job.composed.config.allow_targets)
    plan = _checked_plan(job)
    plan.write(job.run_dir / "plan.json")
    print_plan(plan, job.console)
    with warnings.catch_warnings(action="ignore"):  # of libraries, about what they would like to find
        findings = look_deeper(plan, read_hf_config(job.composed.config)[0])
    for line in findings.lines:
        job.console.print(line, highlight=False, markup=False, soft_wrap=True)
    if findings.problems:
        raise ConfigError(findings.problems)
    job.console.print("checked: nothing wrong was found")
    return 0


def _checked_plan(job: Job) -> LaunchPlan:
    """The plan, once what its config names could be imported and fits its place."""
    from slime_launch.preflight import target_problems

    plan = make_plan(job)
    if found := target_problems(job.composed.config, plan):
        raise ConfigError(found)
    return plan


def run(job: Job) -> int:
    """mode=run: start the plan and drive it to its end, from the step that ``resume`` gives."""
    config = job.composed.config
    grant(config.allow_targets)
    backend = instantiate(config.cluster.backend)
    if isinstance(backend, Scheduler):
        return backend.submit_job(submission(_checked_plan(job), job.run_dir, job.console))
    start = choose(config.resume, job.run_dir, config.seed)
    if start.saved is not None and start.step >= config.trainer.num_steps:
        asked = f"trainer.num_steps={config.trainer.num_steps}"
        print(f"resume: {start.saved.folder} has done {start.step} steps and {asked} asks for no more; nothing to do")
        return 0
    from slime_launch.run import execute

    return execute(job.composed, _checked_plan(job), job.run_dir, job.console, start, job.keep)


def docs(job: Job) -> int:
    """mode=docs: write the reference of all keys and options to docs/config.md below this folder."""
    from slime_launch.docs import write_page
    from slime_launch.options import folders

    print(f"wrote {write_page(Path.cwd(), folders())}")
    return 0


MODES: dict[str, Callable[[Job], int]] = {"run": run, "plan": show_plan, "check": check, "docs": docs}
