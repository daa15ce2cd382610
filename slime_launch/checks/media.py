"""Rules about what a prompt may hold beside its text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from slime_launch.checks.facts import Facts, Rule
from slime_launch.errors import Problem

UNTRAINED = ("video", "videos", "audio", "audios")
_MEND = "leave it out; text and images are taken"


def video_and_audio_are_refused(f: Facts) -> Iterator[Problem]:
    """Neither model nor data declares media that no request would carry and no batch would train."""
    declared = {f"model.encoders.{name}": (name, prefix) for name, prefix in f.config.model.encoders.items()}
    towers = f.config.model.spec.get("encoders", ())
    declared |= {f"model.spec.encoders[{number}]": (str(name), name) for number, name in enumerate(towers)}
    rollout = f.config.rollout
    nodes = {"data": f.config.data, "rollout.generate": rollout.generate, "rollout.media": rollout.media}
    nodes |= {f"rollout.eval_sets.{name}.data": one.data for name, one in rollout.eval_sets.items()}
    for key, node in nodes.items():
        declared |= dict(_named(node, key))
    for key, (name, value) in declared.items():
        # a mapping is a component that someone called so, e.g. a source of a mixture
        if name.lower() in UNTRAINED and value and not isinstance(value, Mapping):
            medium = name.lower().removesuffix("s")
            yield Problem(key, value, f"{medium} is neither sent to the engines nor trained on", _MEND)


def _named(node: Any, key: str) -> Iterator[tuple[str, tuple[str, Any]]]:
    """(key, (its last name, value)) of every entry at any depth."""
    entries = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for name, value in entries:
        inner = f"{key}[{name}]" if isinstance(node, list) else f"{key}.{name}"
        yield inner, (str(name), value)
        yield from _named(value, inner)


RULES: tuple[Rule, ...] = (video_and_audio_are_refused,)
