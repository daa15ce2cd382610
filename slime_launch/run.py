"""One run: a plan, started, driven, taken down; its folder written whichever way it ends."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import yaml
from rich.console import Console

from slime_launch import signals
from slime_launch.compose import Composed
from slime_launch.driver import Loop, Outcome
from slime_launch.endpoints import addresses, published
from slime_launch.errors import LaunchError
from slime_launch.fleets import Kept, own
from slime_launch.memory import PeakMemory
from slime_launch.plan import LaunchPlan
from slime_launch.progress import Progress
from slime_launch.records import Records, point_latest, write_json
from slime_launch.resume import Start, carry_rows
from slime_launch.targets import instantiate
from slime_launch.views import print_plan


def execute(
    composed: Composed, plan: LaunchPlan, run_dir: Path, console: Console, start: Start, keep: Kept | None = None
) -> int:
    """Run what the plan says, from ``start`` on.

    keep: what the job before it left, and what this one leaves to the next.
    Returns the exit code: 0 done, 1 failed, 130 or 143 stopped by a signal.
    """
    began = time.monotonic()
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(composed.plain, sort_keys=False))
    plan.write(run_dir / "plan.json")
    point_latest(run_dir)
    print_plan(plan, console)
    outcome, times, status, code = Outcome(), {"startup_s": 0.0, "peak_rss_mb": 0.0}, "failed", 1
    reason: str | None = None
    try:
        with signals.listening():
            _drive(composed, plan, run_dir, Progress(console), outcome, times, start, keep)
        status, code = "completed", 0
    except signals.Stopped as stop:
        status, code, reason = "stopped", stop.code, f"by {stop}"
    except LaunchError as error:
        reason = str(error)
    except Exception as error:
        log = run_dir / "logs" / "launcher.log"
        log.write_text(traceback.format_exc())
        reason = f"{type(error).__name__}: {error}; the traceback is in {log}"
    if reason is not None:
        print(f"{status} {reason}" if status == "stopped" else f"{status}: {reason}", file=sys.stderr)
    wall_s = time.monotonic() - began
    summary = {
        "status": status, "reason": reason, "steps": outcome.steps, "wall_s": wall_s, **times,
        "eval_before": outcome.eval_before, "eval_after": outcome.eval_after,
        "eval_after_greedy": outcome.greedy_after, "output_dir": str(run_dir),
    }  # fmt: skip
    write_json(run_dir / "summary.json", summary)
    _print_summary(summary, run_dir, console)
    return code


def _drive(
    composed: Composed, plan: LaunchPlan, run_dir: Path, progress: Progress, outcome: Outcome,
    times: dict[str, float], start: Start, keep: Kept | None,
) -> None:  # fmt: skip
    config, began = composed.config, time.monotonic()
    with ExitStack() as stack:
        carry_rows(start, run_dir)
        records = Records(run_dir)
        stack.callback(records.close)
        trackers = [instantiate(node, run_dir=str(run_dir)) for node in config.tracking.trackers.values()]
        for tracker in trackers:
            stack.callback(tracker.close)
        home = stack.enter_context((keep.open if keep else own)(plan, config, run_dir, progress))
        memory = stack.enter_context(PeakMemory(lambda: [os.getpid(), *home.cluster.processes()]))
        stack.callback(lambda: times.update(peak_rss_mb=round(memory.peak_mb, 1)))
        home.fleet.start(home.kept)
        asked = addresses(home.fleet.provided("router_url"), home.fleet.provided("engine_url"))
        stack.enter_context(published(run_dir, asked))
        times["startup_s"] = time.monotonic() - began
        loop = Loop(config, home.fleet, records, trackers, progress, run_dir, outcome, start)
        instantiate(config.driver.loop, loop=loop)


def _print_summary(summary: Mapping[str, object], run_dir: Path, console: Console) -> None:
    before, after = summary["eval_before"], summary["eval_after"]
    console.print(f"{summary['status']} after {summary['steps']} steps, {summary['wall_s']:.0f} s", highlight=False)
    if isinstance(before, float) and isinstance(after, float):
        console.print(f"score {before:.1%} -> {after:.1%} ({100 * (after - before):+.1f} points)", highlight=False)
    console.print(f"files in {run_dir}", highlight=False, soft_wrap=True)
