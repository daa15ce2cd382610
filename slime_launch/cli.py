"""``slime-launch``: compose, check everything, then plan or run.

Exit codes: 0 done, 1 failed, 2 refused, 130/143 stopped.
"""

from __future__ import annotations

import sys
from typing import NoReturn

from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig

from slime_launch import __version__, job
from slime_launch.checks.nodes import RUNLESS_MODES
from slime_launch.compose import CONFIG_NAME, check_arguments, force_add, loader_of, open_hydra, parse_overrides
from slime_launch.errors import ConfigError, LaunchError, Problem
from slime_launch.family import with_family
from slime_launch.machine import read_machine
from slime_launch.paths import bind_components
from slime_launch.show import prints, show
from slime_launch.sweep.identity import register_resolvers

REFUSED = 2


def main() -> None:
    """The console script."""
    sys.exit(command(sys.argv[1:]))


def command(argv: list[str]) -> int:
    """Run one command line; returns the exit code."""
    try:
        bind_components()
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
    version = next(action for action in parser._actions if "--version" in action.option_strings)
    version.version = f"slime-launch {__version__}"  # type: ignore[attr-defined]  # Hydra's own would be told
    args = parser.parse_intermixed_args(argv)
    if found := list(check_arguments(args)):
        raise ConfigError(found)
    register_resolvers()
    try:
        if prints(args):
            return show(args, parser)
        hydra = open_hydra(args.config_dir)
        lines = with_family(hydra, args.overrides)
        return _run(hydra, lines, RunMode.MULTIRUN if args.multirun else RunMode.RUN)
    finally:
        GlobalHydra.instance().clear()


def _refuse_arguments(message: str) -> NoReturn:
    raise ConfigError(
        [Problem("arguments", " ".join(sys.argv[1:]), message, "slime-launch --help lists what there is")]
    )


def _run(hydra: Hydra, lines: list[str], mode: RunMode) -> int:
    machine = read_machine()
    if mode is RunMode.MULTIRUN:
        from slime_launch.sweep.main import sweep

        return sweep(hydra, lines, machine)
    composed, found = job.check(hydra, lines, machine)
    if composed is None or found:
        raise ConfigError(found)
    here = ["hydra.run.dir=."] if composed.config.mode in RUNLESS_MODES else []  # no run, no run folder
    codes: list[int] = []
    refused: list[Problem] = []

    def task(config: DictConfig) -> None:
        try:
            codes.append(job.carry_out(config, lines, machine))
        except ConfigError as error:  # Hydra would print lines of its own about it
            refused.extend(error.problems)

    loader = loader_of(hydra)
    forced = [force_add(loader, override) for override in parse_overrides(hydra, lines)[0]]
    hydra.run(config_name=CONFIG_NAME, task_function=task, overrides=[*forced, *here, f"hydra.mode={mode.name}"])
    if refused:
        raise ConfigError(refused)
    return codes[0]


if __name__ == "__main__":
    main()
