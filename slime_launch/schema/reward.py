"""What the mixer itself takes of a reward part's node; everything else in the node is the part's own argument."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Annotated, Any, Literal

from slime_launch.errors import Problem
from slime_launch.schema.build import build, nearest
from slime_launch.schema.fields import Natural, Seconds, about

MODES = ("sum", "product", "min")
"""How a mixer combines parts: ``reward.mix.mode``."""


@dataclass(frozen=True, kw_only=True)
class OnError:
    """What becomes of a sample whose score fails: ``retry`` first, then one of stop, drop and fallback."""

    retry: Annotated[Natural, about("More tries, with growing waits between them.")] = 0
    then: Annotated[Literal["stop", "drop"], about("Stop the run, or drop the sample.")] = "stop"
    fallback: Annotated[float | None, about("The score to take instead, before weight and normalise.")] = None


@dataclass(frozen=True, kw_only=True)
class PartConfig:
    """The mixer's own keys of a part."""

    weight: Annotated[
        float | list[tuple[int, float]], about("Above zero; or [step, weight] pairs, linear between, level outside.")
    ]
    sources: Annotated[list[str] | None, about("Data sources whose samples it scores; null: all.")] = None
    normalise: Annotated[
        Literal["none", "group"] | tuple[float, float],
        about("group: z-score within the prompt's samples; [lo, hi]: lo to hi becomes 0 to 1, cut off outside."),
    ] = "none"
    gate: Annotated[bool, about("Multiplies the mix of the other parts instead of entering it.")] = False
    on_error: Annotated[OnError, about("What becomes of a sample whose score fails.")] = field(default_factory=OnError)
    deadline_s: Annotated[Seconds | None, about("Longest wait for one call of the part; null: none.", "s")] = None

    @property
    def knots(self) -> tuple[tuple[int, float], ...]:
        """The weight as (step, weight) pairs."""
        return tuple(self.weight) if isinstance(self.weight, list) else ((0, self.weight),)

    def weight_at(self, step: int) -> float:
        """The weight of a step: linear between the pairs, level before the first and after the last."""
        knots = self.knots
        for (a, low), (b, high) in pairwise(knots):
            if a <= step < b:
                return low + (high - low) * (step - a) / (b - a)
        return knots[0][1] if step < knots[0][0] else knots[-1][1]

    def serves(self, source: str) -> bool:
        """Whether it scores samples of a data source."""
        return self.sources is None or source in self.sources


MIXER_KEYS = frozenset(item.name for item in dataclasses.fields(PartConfig))


def own_node(node: Mapping[str, Any]) -> dict[str, Any]:
    """The part's component and its arguments, without the mixer's keys."""
    return {key: value for key, value in node.items() if key not in MIXER_KEYS}


def build_part(node: Mapping[str, Any], key: str) -> tuple[PartConfig | None, list[Problem]]:
    """The mixer's keys of a part's node, typed; (None, problems) when anything is wrong with them."""
    data = {name: value for name, value in node.items() if name in MIXER_KEYS}
    if isinstance(data.get("on_error"), str):
        data["on_error"] = {"then": data["on_error"]}
    if "weight" not in data:
        return None, [Problem(f"{key}.weight", None, "not a weight above 0", "give a number, e.g. 1.0")]
    built, problems = build(PartConfig, data, key)
    if built is None:
        mend = "give a number above 0, or [step, weight] pairs"
        return None, [replace(one, mend=mend) if one.key == f"{key}.weight" else one for one in problems]
    problems = [*_weight_problems(built, key), *_other_problems(built, key)]
    return (None if problems else built), problems


def _weight_problems(part: PartConfig, key: str) -> list[Problem]:
    given, mend = part.weight, "give a number, e.g. 1.0"
    if not isinstance(given, list):
        fine = 0 < given < math.inf
        return [] if fine else [Problem(f"{key}.weight", given, "not a weight above 0", mend)]
    steps = [step for step, _ in given]
    if not given or steps[0] < 0 or any(a >= b for a, b in pairwise(steps)):
        return [
            Problem(f"{key}.weight", given, "steps of a schedule must grow, from 0 on", "e.g. [[0, 1.0], [50, 0.1]]")
        ]
    if not all(0 <= weight < math.inf for _, weight in given) or not any(weight for _, weight in given):
        return [Problem(f"{key}.weight", given, "weights of a schedule must be 0 or above, and not all 0", mend)]
    return []


def _other_problems(part: PartConfig, key: str) -> list[Problem]:
    found = []
    if isinstance(part.normalise, tuple):
        low, high = part.normalise
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            found.append(Problem(f"{key}.normalise", list(part.normalise), "not a range", "give [lo, hi] with lo < hi"))
    if part.sources is not None and (not part.sources or len(set(part.sources)) < len(part.sources)):
        found.append(Problem(f"{key}.sources", part.sources, "empty, or a name twice", "name each source once"))
    fallback = part.on_error.fallback
    if fallback is not None and not math.isfinite(fallback):
        found.append(Problem(f"{key}.on_error.fallback", fallback, "not a finite score", "give a number, e.g. 0.0"))
    if fallback is not None and part.on_error.then == "drop":
        reason = "a failed sample cannot be dropped and scored with the fallback"
        found.append(Problem(f"{key}.on_error.then", "drop", reason, "keep one of then and fallback"))
    return found


def mix_problems(nodes: Mapping[str, Any], mode: object, key: str) -> list[Problem]:
    """Everything wrong with the mixer's own keys of a reward group, and with how its parts go together.

    key: of the reward group, e.g. ``reward``.
    """
    found = []
    if mode not in MODES:
        found.append(Problem(f"{key}.mix.mode", mode, "no such mode", nearest(str(mode), MODES)))
    if not nodes:
        found.append(Problem(f"{key}.parts", "{}", "no rewards", "name at least one part"))
    parts: dict[str, PartConfig] = {}
    for name, node in nodes.items():
        built, wrong = build_part(node, f"{key}.parts.{name}")
        found += wrong
        if built is not None:
            parts[name] = built
    if found:
        return found
    return [
        *_twice(nodes, parts, key), *_uncombinable(parts, str(mode), key), *_empty_mixes(parts, key),
    ]  # fmt: skip


def _twice(nodes: Mapping[str, Any], parts: Mapping[str, PartConfig], key: str) -> Iterator[Problem]:
    """The same component with the same arguments for the same samples."""
    seen: dict[str, list[str]] = {}
    for name, node in nodes.items():
        one = parts[name]
        same = seen.setdefault(json.dumps([own_node(node), one.normalise, one.gate], sort_keys=True, default=str), [])
        for other in same:
            shared = None in (one.sources, parts[other].sources) or set(one.sources or ()) & set(
                parts[other].sources or ()
            )
            if shared:
                mend = "keep one and add up the weights"
                yield Problem(f"{key}.parts.{name}", node.get("_target_"), f"the same as {key}.parts.{other}", mend)
                break
        same.append(name)


def _uncombinable(parts: Mapping[str, PartConfig], mode: str, key: str) -> Iterator[Problem]:
    """What a mode cannot take: weights in a minimum, scores below zero in a product."""
    for name, one in parts.items():
        if mode == "min" and not one.gate and one.weight != 1:
            reason = "a minimum has no weights"
            yield Problem(f"{key}.parts.{name}.weight", one.weight, reason, f"give 1.0, or {key}.mix.mode=sum")
        if (mode == "product" or one.gate) and one.normalise == "group":
            reason = "z-scores fall below zero and cannot be multiplied"
            yield Problem(f"{key}.parts.{name}.normalise", "group", reason, "give [lo, hi] or none")


def _empty_mixes(parts: Mapping[str, PartConfig], key: str) -> Iterator[Problem]:
    """Samples for which nothing is left to mix: gates alone, or weights that are all zero at some step."""
    named = sorted({source for one in parts.values() for source in one.sources or ()})
    others = [None] if any(one.sources is None for one in parts.values()) else []
    for source in [*others, *named]:
        whose = "" if source is None else f" for samples of {source}"
        mixed = {
            name: one for name, one in parts.items()
            if not one.gate and (one.sources is None or (source is not None and one.serves(source)))
        }  # fmt: skip
        if not mixed:
            yield Problem(f"{key}.parts", ", ".join(parts), f"only gates{whose}", "add a part that is none")
            continue
        steps = sorted({step for one in mixed.values() for step, _ in one.knots})
        empty = next((step for step in steps if not any(one.weight_at(step) for one in mixed.values())), None)
        if empty is not None:
            first = next(iter(mixed))
            reason = f"all weights are zero at step {empty}{whose}"
            yield Problem(f"{key}.parts.{first}.weight", mixed[first].weight, reason, "keep one above zero")
