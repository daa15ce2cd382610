"""One command line as one job: composed and checked on paper, or carried out by the mode it asks for."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import cast

from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from slime_launch.checks import problems
from slime_launch.compose import Composed, compose, validate
from slime_launch.errors import ConfigError, Problem
from slime_launch.machine import Machine


def check(hydra: Hydra, lines: list[str], machine: Machine) -> tuple[Composed | None, list[Problem]]:
    """Compose a command line and look for everything wrong with it; nothing is started."""
    config, found = compose(hydra, lines)
    if config is None:
        return None, found
    composed, more = validate(config, config.hydra, lines)
    found += more
    if composed is not None:
        found += problems(composed.config, machine)
    return composed, found


def carry_out(config: DictConfig, lines: list[str], machine: Machine) -> int:
    """What Hydra calls with a plain run's config; returns the exit code.

    lines: the command line, which alone can grant packages. Raises ConfigError.
    """
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
