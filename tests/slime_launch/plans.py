"""Plans made in this process, on a machine that is always the same; and a short form of them to keep."""

from __future__ import annotations

from typing import Any

import msgspec
from hydra.core.global_hydra import GlobalHydra

from slime_launch.checks import problems
from slime_launch.compose import compose, open_hydra, validate
from slime_launch.errors import ConfigError
from slime_launch.machine import Machine
from slime_launch.model_files import read_hf_config
from slime_launch.plan import Actor, LaunchPlan
from slime_launch.resolve import resolve

MACHINE = Machine(gpus=0, cores=4, memory_gb=32.0)
BASE_PORT = 20_000


def plan_for(*args: str, config_dir: str | None = None) -> LaunchPlan:
    """The plan of a command line, mode=plan.

    Raises ConfigError with everything that is wrong.
    """
    GlobalHydra.instance().clear()
    hydra = open_hydra(config_dir)
    try:
        lines = [*args, "mode=plan"]
        composed, found = compose(hydra, lines)
        if composed is not None:
            checked, more = validate(composed, composed.hydra, lines)
            found += more
            if checked is not None:
                found += problems(checked.config, MACHINE)
        if found or composed is None or checked is None:
            raise ConfigError(found)
        return resolve(checked.config, MACHINE, BASE_PORT, read_hf_config(checked.config)[0])
    finally:
        GlobalHydra.instance().clear()


def short_form(plan: LaunchPlan) -> dict[str, Any]:
    """The plan with the actors of a group as one: what they share, and the values in which they differ."""
    tree: dict[str, Any] = msgspec.to_builtins(plan)
    tree["actors"] = {name: _group(actors) for name, actors in plan.groups().items()}
    tree["edges"] = [f"{edge.src} -> {edge.dst}: {edge.name}" for edge in plan.edges]
    return tree


def _group(actors: list[Actor]) -> dict[str, Any]:
    flat = [_flatten(msgspec.to_builtins(actor)) for actor in actors]
    keys = dict.fromkeys(key for values in flat for key in values)
    columns = {key: [values.get(key, "-") for values in flat] for key in keys}
    shared = {key: values[0] for key, values in columns.items() if all(value == values[0] for value in values)}
    differs = {key: _series(values) for key, values in columns.items() if key not in shared}
    return {"count": len(actors), **shared, "differs": differs}


def _series(values: list[Any]) -> str:
    """All of a few values, else how a long row begins and ends."""
    shown = list(map(str, values))
    return " ".join(shown if len(shown) <= 16 else [*shown[:9], "...", *shown[-3:]])


def _flatten(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {key: value}
    return {k: v for name, item in value.items() for k, v in _flatten(item, f"{key}.{name}" if key else name).items()}
