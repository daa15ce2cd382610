"""Command line -> composed config, through Hydra, with every problem found instead of the first.

Values compose loosely (the schema's defaults go into Hydra's ConfigStore as plain values) and are validated strictly,
once, by ``slime_launch.schema.build``. Nothing a config names is imported here: ``_target_`` entries, Hydra's own
included, are checked before Hydra may act on them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra import version as hydra_version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from slime_launch.errors import ConfigError, Problem
from slime_launch.paths import CONF
from slime_launch.schema import Config
from slime_launch.schema.build import build, defaults, nearest, unknown_key
from slime_launch.sweep.plugins import store_defaults
from slime_launch.sweep.seal import plugin_problems
from slime_launch.targets import OWN_PACKAGES, find_targets, static_fault

CONFIG_NAME = "config"
_NO_LOGGING = {"version": 1, "root": None, "disable_existing_loggers": False}
SEALED: dict[str, Any] = {
    "callbacks": {},
    "job_logging": _NO_LOGGING,
    "hydra_logging": _NO_LOGGING,
    "searchpath": [],
    "job.env_set": {},
    "job.env_copy": [],
    "job.chdir": None,
    "sweep.subdir": "${sweep_job:${hydra.job.override_dirname}}",  # a job is found again by its folder's name
}


@dataclass(frozen=True)
class Composed:
    """A config that passed: typed for us, and as plain containers (oc.env nodes unresolved) for the run folder."""

    config: Config
    plain: dict[str, Any]


def open_hydra(config_dir: str | None) -> Hydra:
    """Hydra on our conf/ and the user's ``--config-dir``.

    Raises ConfigError when that folder does not exist.
    """
    hydra_version.setbase("1.3")
    ConfigStore.instance().store(name="schema", node=defaults(Config))
    search_path = create_config_search_path(str(CONF))
    if config_dir is not None:
        folder = Path(config_dir).resolve()
        if not folder.is_dir():
            raise ConfigError(
                [Problem("--config-dir", config_dir, "no such folder", "name a folder that holds YAML groups")]
            )
        search_path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema", path=None))
    hydra = Hydra.create_main_hydra2(task_name="slime-launch", config_search_path=search_path)
    store_defaults()
    return hydra


def loader_of(hydra: Hydra) -> ConfigLoaderImpl:
    """Hydra's config loader, as the one class that it comes in."""
    loader = hydra.config_loader
    assert isinstance(loader, ConfigLoaderImpl)
    return loader


def check_arguments(args: argparse.Namespace) -> Iterator[Problem]:
    """Hydra options that would load code or another root config."""
    for name in ("config_path", "config_name", "experimental_rerun"):
        if getattr(args, name, None) is not None:
            flag = f"--{name.replace('_', '-')}"
            yield Problem(flag, getattr(args, name), "not supported", "put your own groups under --config-dir")


def parse_overrides(hydra: Hydra, lines: Iterable[str]) -> tuple[list[Override], list[Problem]]:
    """Parse each override on its own, so that all that are malformed are listed."""
    parser, parsed, problems = OverridesParser.create(hydra.config_loader), [], []
    for line in lines:
        try:
            parsed.append(parser.parse_override(line))
        except RecursionError:
            problems.append(Problem(line[:40], "...", "nested too deeply", "flatten the value"))
        except HydraException as error:
            key, _, value = line.partition("=")
            problems.append(
                Problem(
                    key,
                    value,
                    f"cannot be parsed ({str(error).splitlines()[0]})",
                    "write key=value, quoting special characters",
                )
            )
    return parsed, problems


def _check_override(loader: ConfigLoaderImpl, override: Override) -> Problem | None:
    key, value = override.key_or_group, (override.input_line or "").partition("=")[2]
    if override.is_sweep_override():
        return Problem(key, value, "several values need a sweep", "add -m, or quote the value if it is one")
    if override.is_hydra_override():
        if key == "hydra.searchpath":
            return Problem(key, value, "not supported", "use --config-dir")
        return None
    if loader.repository.group_exists(key):
        chosen = override.value()
        if override.is_delete() or chosen is None or isinstance(chosen, list):
            return None
        if not loader.repository.config_exists(f"{key}/{chosen}"):
            return Problem(key, chosen, "no such option", nearest(str(chosen), loader.get_group_options(key)))
        return None
    if "/" in key:
        groups = [*_groups(loader)]
        return Problem(key, value, "no such group", nearest(key, groups))
    problem = unknown_key(Config, key)
    return Problem(key, value, problem.reason, problem.mend) if problem else None


def force_add(loader: ConfigLoaderImpl, override: Override) -> str:
    """The override as a line that Hydra takes for keys that no YAML spells out; the schema has checked the key."""
    line = override.input_line or ""
    plain = not (
        override.is_hydra_override() or override.is_delete() or loader.repository.group_exists(override.key_or_group)
    )
    return "++" + line.lstrip("+") if plain else line


def _groups(loader: ConfigLoaderImpl, parent: str = "") -> Iterator[str]:
    for name in loader.list_groups(parent):
        group = f"{parent}/{name}" if parent else name
        if not group.startswith("hydra"):
            yield group
            yield from _groups(loader, group)


def compose(hydra: Hydra, lines: list[str], mode: RunMode = RunMode.RUN) -> tuple[DictConfig | None, list[Problem]]:
    """Compose what the good overrides give.

    mode: with MULTIRUN, groups that no override has chosen yet are left out.
    Returns (config with its hydra node, problems); the config is None when Hydra could not compose at all.
    """
    loader = loader_of(hydra)
    overrides, problems = parse_overrides(hydra, lines)
    good = []
    for override in overrides:
        problem = _check_override(loader, override)
        if problem:
            problems.append(problem)
        else:
            good.append(force_add(loader, override))
    try:
        return loader.load_configuration(CONFIG_NAME, good, mode, validate_sweep_overrides=False), problems
    except (HydraException, OmegaConfBaseException, YAMLError, UnicodeError, RecursionError, OSError) as error:
        cause = error.__cause__ or error
        text = " ".join(str(cause).split("\n\n")[0].split())
        return None, [
            *problems,
            Problem("config", " ".join(good) or CONFIG_NAME, text, "mend the named file or override"),
        ]


def hydra_problems(node: DictConfig) -> Iterator[Problem]:
    """Whatever would have Hydra import, run or inherit something: only our own values may stand there, as written."""
    plain = as_dict(node, resolve=False)
    for key, ours in SEALED.items():
        value: Any = plain
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else value
        if value != ours:
            yield Problem(f"hydra.{key}", value, "sealed, since Hydra would run or inherit it", f"leave it at {ours}")
    yield from plugin_problems(plain)


def as_dict(config: DictConfig, *, resolve: bool) -> dict[str, Any]:
    """A config as plain containers."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=resolve))


def _without_hydra(config: DictConfig) -> dict[str, Any]:
    """The config without its hydra node as plain containers, unresolved."""
    return {key: value for key, value in as_dict(config, resolve=False).items() if key != "hydra"}


@contextmanager
def unresolved(*resolvers: str) -> Iterator[None]:
    """Meanwhile these resolvers give what is written: ``${oc.env:NAME}`` stays ``${oc.env:NAME}``."""

    def as_written(resolver: str) -> Callable[..., str]:
        return lambda *names: f"${{{resolver}:{','.join(map(str, names))}}}"

    for name in resolvers:
        OmegaConf.register_new_resolver(name, as_written(name), replace=True)
    try:
        yield
    finally:
        from omegaconf.resolvers import oc

        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
        setup_globals()  # those of Hydra


def plain_config(config: DictConfig, keep_env: bool) -> dict[str, Any]:
    """The config without its hydra node as plain containers, resolved.

    keep_env: leave every value that comes from ``oc.env``, directly or through other keys, as ``${oc.env:NAME}``.
    """
    loose = OmegaConf.create(_without_hydra(config))
    with unresolved("oc.env") if keep_env else nullcontext():
        return as_dict(loose, resolve=True)


def _target_problems(config: DictConfig, plain: dict[str, Any], granted: list[str]) -> Iterator[Problem]:
    asked = [str(name) for name in config.get("allow_targets") or []]
    if extra := ",".join(name for name in asked if name not in granted):
        mend = f"give it on the command line: allow_targets=[{extra}]"
        yield Problem("allow_targets", asked, "a config file cannot grant itself packages", mend)
    packages = (*OWN_PACKAGES, *granted)
    mend = "name a class or function of components, slime_launch or a package in allow_targets"
    # unresolved first, so that a node which others copy by interpolation is named once, where it stands
    written = {key: OmegaConf.select(config, key) for key, _ in find_targets(_without_hydra(config))}
    for targets in (written, dict(find_targets(plain))):
        faults = {key: fault for key, target in targets.items() if (fault := static_fault(target, packages))}
        yield from (Problem(key, targets[key], fault, mend) for key, fault in faults.items())
        if faults:
            return


def _granted(lines: list[str]) -> list[str]:
    """Packages given to ``allow_targets`` on the command line itself."""
    parser, granted = OverridesParser.create(), []
    for line in lines:
        if line.lstrip("+").startswith("allow_targets="):
            with suppress(HydraException):  # a malformed line has its own problem already
                value = parser.parse_override(line).value()
                granted += [str(name) for name in value] if isinstance(value, list) else []
    return granted


def validate(config: DictConfig, hydra_node: DictConfig, lines: list[str]) -> tuple[Composed | None, list[Problem]]:
    """Composed config -> typed config, or everything wrong with it. Imports none of its targets."""
    problems = [*hydra_problems(hydra_node)]
    try:
        plain = plain_config(config, keep_env=False)
    except OmegaConfBaseException as error:
        key = str(getattr(error, "full_key", None) or "config")
        return None, [*problems, Problem(key, "${...}", str(error).splitlines()[0], "mend the interpolation")]
    problems += _target_problems(config, plain, _granted(lines))
    typed, found = build(Config, plain)
    problems += found
    if problems:
        return None, problems
    return Composed(typed, plain_config(config, keep_env=True)), []
