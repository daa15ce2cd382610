"""Rules about modes and components."""

from __future__ import annotations

from collections.abc import Iterator

from slime_launch.checks.facts import Facts, Rule
from slime_launch.errors import ConfigError, Problem
from slime_launch.model_files import makes_checkpoint
from slime_launch.resume import AUTO, named

BUILT_MODES = ("run", "plan", "check", "docs")
RUNLESS_MODES = ("docs",)
"""Modes that plan and run nothing: they need neither a model nor a machine, and make no run folder."""


def mode_is_built(f: Facts) -> Iterator[Problem]:
    """Modes that are planned but not there yet are refused as such."""
    if f.config.mode not in BUILT_MODES:
        yield Problem("mode", f.config.mode, "not built yet", f"use one of {', '.join(BUILT_MODES)}")


def checkpoints_can_be_read(f: Facts) -> Iterator[Problem]:
    """A checkpoint that is named by its path is whole and only ours."""
    given = {"resume": f.config.resume, "trainer.checkpoint.weights_from": f.config.trainer.checkpoint.weights_from}
    for key, path in given.items():
        if path is not None and (key, path) != ("resume", AUTO):
            try:
                named(key, path)
            except ConfigError as error:
                yield from error.problems


def nodes_have_targets(f: Facts) -> Iterator[Problem]:
    """Every component node names its component."""
    config = f.config
    nodes = {
        "model.spec": config.model.spec, "algorithm.policy": config.algorithm.policy, "data": config.data,
        "rollout.worker": config.rollout.worker, "rollout.server": config.rollout.server,
        "trainer.worker": config.trainer.worker, "driver.loop": config.driver.loop, "reward.mix": config.reward.mix,
        "cluster.backend": config.cluster.backend, "rollout.generate": config.rollout.generate,
        **{f"rollout.filters.{name}": node for name, node in config.rollout.filters.items()},
        **{f"reward.parts.{name}": node for name, node in config.reward.parts.items()},
    }  # fmt: skip
    if makes_checkpoint(config):
        nodes["model.tiny"] = config.model.tiny
    if any(group.urls is not None for group in f.groups.values()):
        nodes["rollout.external"] = config.rollout.external
    for key, node in nodes.items():
        if "_target_" not in node:
            mend = f"set {key}._target_ or choose an option of its group"
            yield Problem(key, node or "null", "names no component", mend)


RULES: tuple[Rule, ...] = (mode_is_built, checkpoints_can_be_read, nodes_have_targets)
