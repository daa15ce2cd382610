"""Rules about modes, components and rewards."""

from __future__ import annotations

from collections.abc import Iterator

from slime_launch.checks.facts import Facts, Rule
from slime_launch.errors import ConfigError, Problem
from slime_launch.model_files import makes_checkpoint
from slime_launch.resume import AUTO, named
from slime_launch.schema.build import nearest

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
        "cluster.backend": config.cluster.backend,
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


def reward_is_sound(f: Facts) -> Iterator[Problem]:
    """Parts have positive weights; the reported score is one of them."""
    parts = f.config.reward.parts
    if not parts:
        yield Problem("reward.parts", "{}", "no rewards", "choose an option of the reward group")
    for name, node in parts.items():
        weight = node.get("weight")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            yield Problem(f"reward.parts.{name}.weight", weight, "not a weight above 0", "give a number, e.g. 1.0")
    if f.config.reward.score is not None and f.config.reward.score not in parts:
        yield Problem("reward.score", f.config.reward.score, "no such part", nearest(f.config.reward.score, parts))


RULES: tuple[Rule, ...] = (mode_is_built, checkpoints_can_be_read, nodes_have_targets, reward_is_sound)
