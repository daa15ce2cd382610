"""What only imports can tell: whether each ``_target_`` is what its place wants and takes the arguments given.

``target_problems`` runs before every run and imports what the config names. ``look_deeper``, mode=check, also asks each
component that can tell (``Checkable``), which imports SGLang and Megatron. Neither starts anything.
"""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slime_launch import interfaces
from slime_launch.errors import LaunchError, Problem
from slime_launch.plan import Actor, LaunchPlan
from slime_launch.schema import Config
from slime_launch.schema.reward import own_node
from slime_launch.targets import resolve


@dataclass(frozen=True)
class Role:
    """What a node's target must be: a class of a Protocol, or of one of several (None: any callable), called with
    these keywords too."""

    protocol: type | tuple[type, ...] | None
    runtime: tuple[str, ...] = ()


def _nodes(config: Config) -> Iterator[tuple[str, dict[str, Any], Role]]:
    """(key, node, role) of every component node that is not an actor's own."""
    yield "model.spec", config.model.spec, Role(None, ("config", "vp_stage"))
    yield "algorithm.policy", config.algorithm.policy, Role(interfaces.Algorithm)
    yield "data", config.data, Role(interfaces.DataSource, ("seed",))
    yield "reward.mix", config.reward.mix, Role(interfaces.Reward, ("parts",))
    for name, node in config.reward.parts.items():
        yield f"reward.parts.{name}", own_node(node), Role(_PARTS)
    yield "rollout.generate", config.rollout.generate, Role(interfaces.Generate)
    for name, node in config.rollout.filters.items():
        yield f"rollout.filters.{name}", node, Role(interfaces.Filter)
    for name, one in config.rollout.eval_sets.items():
        if one.data:
            yield f"rollout.eval_sets.{name}.data", one.data, Role(interfaces.DataSource, ("seed",))
    for name, node in config.tracking.trackers.items():
        yield f"tracking.trackers.{name}", node, Role(interfaces.Tracker, ("run_dir",))
    yield "driver.loop", config.driver.loop, Role(None, ("loop",))


_PARTS = (interfaces.Reward, interfaces.SingleReward, interfaces.GroupReward)
_ACTOR_KEYS = {
    "checkpoint": "model.tiny", "trainer": "trainer.worker", "rollout": "rollout.worker", "router": "rollout.server",
    "external": "rollout.external",
}  # fmt: skip
_PROTOCOLS: dict[str, type] = {"trainer": interfaces.Trainer, "rollout": interfaces.Rollout}


def _actors(plan: LaunchPlan) -> Iterator[tuple[str, Actor]]:
    """(key, actor) of the first actor of each group, with the config key that names its component."""
    for actors in plan.groups().values():
        yield _ACTOR_KEYS.get(actors[0].kind, "rollout.server"), actors[0]


def target_problems(config: Config, plan: LaunchPlan) -> list[Problem]:
    """Targets that cannot be imported, lack a method of their Protocol, or do not take the arguments given."""
    found = [problem for key, node, role in _nodes(config) for problem in _check(key, node, role)]
    for key, actor in _actors(plan):
        role = Role(_PROTOCOLS.get(actor.kind, interfaces.Component))
        found += _check(key, {"_target_": actor.component, **actor.args}, role)
    return _unique(found)


def look_deeper(plan: LaunchPlan, hf: Mapping[str, Any]) -> interfaces.Findings:
    """What the components themselves find wrong, and lines to show: rendered prompts, built configs.

    A checkpoint that is not there yet is stood in for, in a temporary folder: by the random beginning of a tiny one,
    or by config.json alone (``hf``).
    """
    problems: list[Problem] = []
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        made = _stand_in(plan, hf, Path(folder))
        for key, actor in _actors(plan):
            found = _ask(key, actor, made)
            problems += found.problems
            lines += found.lines
    return interfaces.Findings(_unique(problems), lines)


def _ask(key: str, actor: Actor, made: Mapping[str, str]) -> interfaces.Findings:
    component = resolve(actor.component)
    if not isinstance(component, interfaces.Checkable):
        return interfaces.Findings()
    args = {name: made.get(value, value) if isinstance(value, str) else value for name, value in actor.args.items()}
    try:
        return component.preflight(args)
    except LaunchError as error:
        return interfaces.Findings([Problem(key, actor.component, str(error), "mend what it names")])


def _stand_in(plan: LaunchPlan, hf: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """The trained checkpoint's folder -> one to look into, where it is not there yet."""
    target = Path(plan.of_kind("rollout")[0].args["hf_checkpoint"])
    if (target / "config.json").is_file():
        return {}
    for actor in plan.of_kind("checkpoint"):
        maker = resolve(actor.component)
        if isinstance(maker, interfaces.StandsIn):
            maker.write_stand_in(actor.args, str(folder))
    if not (folder / "config.json").is_file():
        (folder / "config.json").write_text(json.dumps(hf))
    return {str(target): str(folder)}


def _check(key: str, node: Mapping[str, Any], role: Role) -> Iterator[Problem]:
    target = node["_target_"]
    try:
        found = resolve(target)
    except Exception as error:  # whatever a user's module raises when it is imported
        yield Problem(f"{key}._target_", target, f"cannot be imported ({type(error).__name__}: {error})", "mend it")
        return
    given = {name: value for name, value in node.items() if name not in ("_target_", "_partial_")}
    given |= dict.fromkeys(role.runtime)
    try:
        signature = inspect.signature(found)
        (signature.bind_partial if node.get("_partial_") else signature.bind)(**given)
    except TypeError as error:
        takes = ", ".join(inspect.signature(found).parameters)
        yield Problem(key, target, f"cannot be called with {sorted(given)}: {error}", f"it takes {takes}")
    if role.protocol is not None and inspect.isclass(found):
        yield from _missing(key, target, found, _protocol(found, role.protocol))


def _protocol(found: type, allowed: type | tuple[type, ...]) -> type:
    """Of several Protocols the first whose methods the class has by name, else the first."""
    if isinstance(allowed, type):
        return allowed
    return next((one for one in allowed if all(hasattr(found, name) for name in _methods(one))), allowed[0])


def _methods(protocol: type) -> dict[str, Any]:
    return {name: method for name, method in inspect.getmembers(protocol, inspect.isfunction) if name[0] != "_"}


def _missing(key: str, target: str, found: type, protocol: type) -> Iterator[Problem]:
    """Methods of the Protocol that a class lacks, cannot be called alike, or that must be async and are not."""
    for name, wanted in _methods(protocol).items():
        mend = f"see {protocol.__module__}.{protocol.__name__}"
        method = getattr(found, name, None)
        if not callable(method):
            yield Problem(f"{key}._target_", target, f"has no method {name}{inspect.signature(wanted)}", mend)
        elif inspect.iscoroutinefunction(wanted) and not inspect.iscoroutinefunction(method):
            yield Problem(f"{key}._target_", target, f"{name} must be async", mend)
        else:
            try:
                inspect.signature(method).bind(*inspect.signature(wanted).parameters)
            except TypeError:
                reason = f"{name}{inspect.signature(method)} cannot be called as {name}{inspect.signature(wanted)}"
                yield Problem(f"{key}._target_", target, reason, mend)


def _unique(problems: list[Problem]) -> list[Problem]:
    return list({str(problem): problem for problem in problems}.values())
