"""What prints and starts nothing: help, the composed config, Hydra's own information, shell completion."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from slime_launch.compose import CONFIG_NAME, compose, force_add, loader_of, open_hydra, parse_overrides
from slime_launch.errors import ConfigError, Problem
from slime_launch.family import with_family
from slime_launch.help import help_text
from slime_launch.paths import CONF


def prints(args: argparse.Namespace) -> bool:
    """Whether a command line only asks for something to read.

    Raises ConfigError for questions that exclude each other.
    """
    asked = {
        "--help": args.help, "--hydra-help": args.hydra_help, "--cfg": args.cfg, "--info": args.info,
        "--shell-completion": args.shell_completion, "--multirun": args.multirun, "--run": args.run,
    }  # fmt: skip
    given = [flag for flag, value in asked.items() if value]
    if len(given) > 1:
        raise ConfigError([Problem("arguments", " ".join(given), "exclude each other", "give one of them")])
    for flag, value in {"--package": args.package, "--resolve": args.resolve}.items():
        if value and not args.cfg:
            raise ConfigError([Problem(flag, value, "says how --cfg prints", "add --cfg job")])
    return bool(given) and given[0] not in ("--multirun", "--run")


def show(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Print what was asked for; returns the exit code.

    Raises ConfigError when it cannot.
    """
    hydra = open_hydra(_completed_config_dir() if args.shell_completion else args.config_dir)
    if args.help:
        from slime_launch.modes import MODES

        print(help_text([Path(args.config_dir), CONF] if args.config_dir else [CONF], MODES))
    elif args.hydra_help:
        hydra.hydra_help(CONFIG_NAME, parser, args)
    elif args.shell_completion:
        _answer(lambda: hydra.shell_completion(CONFIG_NAME, args.overrides), "--shell-completion", args.overrides)
    elif args.cfg:
        _show_config(_composed(hydra, args.overrides), args)
    else:
        _composed(hydra, args.overrides)
        forced = [force_add(loader_of(hydra), override) for override in parse_overrides(hydra, args.overrides)[0]]
        _answer(lambda: hydra.show_info(args.info, CONFIG_NAME, forced), "--info", args.info)
    return 0


def _composed(hydra: Hydra, lines: list[str]) -> DictConfig:
    config, found = compose(hydra, with_family(hydra, lines))
    if config is None or found:
        raise ConfigError(found)
    return config


def _show_config(config: DictConfig, args: argparse.Namespace) -> None:
    """``--cfg job|hydra|all``, from a package on, as YAML."""
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        if args.cfg == "job":
            del config["hydra"]
        shown: Any = OmegaConf.masked_copy(config, "hydra") if args.cfg == "hydra" else config
    if args.package not in (None, "_global_"):
        shown = _answer(lambda: OmegaConf.select(shown, args.package), "--package", args.package)
        if shown is None:
            raise ConfigError([Problem("--package", args.package, "no such key", "--cfg job alone shows all keys")])
    if OmegaConf.is_config(shown):
        print(_answer(lambda: OmegaConf.to_yaml(shown, resolve=args.resolve), f"--cfg {args.cfg}", "--resolve"), end="")
    else:
        print(shown)


def _answer(ask: Callable[[], Any], key: str, value: object) -> Any:
    """What Hydra answers; its errors become ours."""
    try:
        return ask()
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError([Problem(key, value, reason, "slime-launch --help shows how to ask")]) from error


def _completed_config_dir() -> str | None:
    """The folder after ``--config-dir`` on the line that the shell is completing, once it is there."""
    words = os.environ.get("COMP_LINE", "").split()
    pairs = [*pairwise(words), *(word.partition("=")[::2] for word in words)]
    folders = [value for flag, value in pairs if flag in ("--config-dir", "-cd") and value and Path(value).is_dir()]
    return folders[-1] if folders else None
