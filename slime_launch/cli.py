"""``slime-launch``: compose, check everything, then plan or run.

Exit codes: 0 done, 1 failed, 2 refused, 130/143 stopped.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, cast

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from slime_launch.checks import problems
from slime_launch.compose import (
    CONFIG_NAME,
    Composed,
    check_arguments,
    compose,
    force_add,
    loader_of,
    open_hydra,
    parse_overrides,
    validate,
)
from slime_launch.errors import ConfigError, LaunchError, Problem
from slime_launch.machine import Machine, read_machine
from slime_launch.paths import CONF, require_house

REFUSED = 2
_SIGNALLED = 128


def main() -> None:
    """The console script."""
    sys.exit(command(sys.argv[1:]))


def command(argv: list[str]) -> int:
    """Run one command line; returns the exit code."""
    try:
        require_house()
        return _command(argv)
    except ConfigError as error:
        unique = dict.fromkeys(map(str, error.problems))
        print("\n".join(unique), file=sys.stderr)
    except LaunchError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # a run reports its own failures: what comes here came before anything started
        text = " ".join(str(error).split())
        print(
            f"error: arguments={' '.join(argv)}: {type(error).__name__}: {text}; mend the named input", file=sys.stderr
        )
    return REFUSED


def _command(argv: list[str]) -> int:
    parser = get_args_parser()
    parser.error = _refuse_arguments  # type: ignore[method-assign]
    args = parser.parse_intermixed_args(argv)
    if found := list(check_arguments(args)):
        raise ConfigError(found)
    hydra = open_hydra(args.config_dir)
    if args.help or args.hydra_help or args.cfg or args.info or args.shell_completion:
        GlobalHydra.instance().clear()
        _run_hydra(args, parser, lambda _: None, str(CONF), CONFIG_NAME)
        return 0
    try:
        return _run(hydra, args.overrides, RunMode.MULTIRUN if args.multirun else RunMode.RUN)
    finally:
        GlobalHydra.instance().clear()


def _refuse_arguments(message: str) -> NoReturn:
    raise ConfigError(
        [Problem("arguments", " ".join(sys.argv[1:]), message, "slime-launch --help lists what there is")]
    )


def _check(hydra: Hydra, lines: list[str], machine: Machine) -> tuple[Composed | None, list[Problem]]:
    config, found = compose(hydra, lines)
    if config is None:
        return None, found
    composed, more = validate(config, config.hydra, lines)
    found += more
    if composed is not None:
        found += problems(composed.config, machine)
    return composed, found


def _jobs(hydra: Hydra, lines: list[str], mode: RunMode) -> list[list[str]]:
    """The command lines of a sweep's jobs, or the one of a plain run."""
    if mode is RunMode.RUN:
        return [lines]
    overrides, found = parse_overrides(hydra, lines)
    if found:
        raise ConfigError(found)
    return BasicSweeper.split_arguments(overrides, None)[0]


def _run(hydra: Hydra, lines: list[str], mode: RunMode) -> int:
    machine = read_machine()
    found: list[Problem] = []
    for job in _jobs(hydra, lines, mode):
        found += _check(hydra, job, machine)[1]
    if found:
        raise ConfigError(found)
    codes: list[int] = []

    def task(config: DictConfig) -> int:
        try:
            codes.append(_job(config, lines, machine))
        except ConfigError as error:  # Hydra would print lines of its own about it
            found.extend(error.problems)
            codes.append(REFUSED)
        if codes[-1] >= _SIGNALLED:
            raise SystemExit(codes[-1])  # a signal stops a sweep, not only its job
        return codes[-1]

    start = hydra.run if mode is RunMode.RUN else hydra.multirun
    loader = loader_of(hydra)
    forced = [force_add(loader, override) for override in parse_overrides(hydra, lines)[0]]
    start(config_name=CONFIG_NAME, task_function=task, overrides=[*forced, f"hydra.mode={mode.name}"])
    if found:
        raise ConfigError(found)
    return max(codes, default=0)


def _job(config: DictConfig, lines: list[str], machine: Machine) -> int:
    from rich.console import Console

    from slime_launch.modes import MODES, Job

    hydra_node = cast(DictConfig, HydraConfig.get())
    composed, found = validate(config, hydra_node, lines)
    if composed is None:
        raise ConfigError(found)
    job = Job(composed, machine, Path(hydra_node.runtime.output_dir), Console())
    try:
        return MODES[composed.config.mode](job)
    except ConfigError:
        with suppress(OSError):  # a refusal leaves nothing: Hydra has made the folder, and it is still empty
            job.run_dir.rmdir()
        raise


if __name__ == "__main__":
    main()
