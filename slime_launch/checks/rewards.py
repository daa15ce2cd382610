"""Rules about rewards, the run's and those that evaluation sets bring along."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from slime_launch.checks.facts import Facts, Rule
from slime_launch.errors import Problem
from slime_launch.schema import RewardConfig
from slime_launch.schema.build import build, nearest
from slime_launch.schema.reward import PartConfig, build_part, mix_problems
from slime_launch.schema.rollout import EvalSet


def known_sources(data: Mapping[str, Any]) -> list[str] | None:
    """Names of the sources of a mixture; None for any other data, which says them only when it is read."""
    sources = data.get("sources")
    return list(sources) if isinstance(sources, Mapping) and sources else None


def _scored(name: str, settings: EvalSet, data: Mapping[str, Any]) -> list[str] | None:
    """Sources of a held-out set's samples, as far as data and the set's name tell; None where they do not.

    Sets of a mixture are called ``<source>`` or ``<source>_<set>``.
    """
    sources = known_sources(settings.data or data)
    if settings.data or settings.endpoint.base_url or sources is None:
        return sources
    if name in sources:
        return [name]
    named = [source for source in sources if name.startswith(f"{source}_")]
    return named if len(named) == 1 else None


def rewards_are_sound(f: Facts) -> Iterator[Problem]:
    """Parts and the mixer's settings are right and go together; the reported score is one of the parts."""
    rollout, data = f.config.rollout, f.config.data
    sources = known_sources(data)
    elsewhere = [one for held in rollout.eval_sets.values() for one in known_sources(held.data or {}) or ()]
    yield from _group("reward", f.config.reward, sources and [*sources, *elsewhere], sources)
    for name, settings in rollout.eval_sets.items():
        if settings.reward:
            key = f"rollout.eval_sets.{name}.reward"
            reward, problems = build(RewardConfig, {"mix": f.config.reward.mix} | settings.reward, key)
            yield from problems or _nodes_have_targets(key, reward)
            if not problems:
                yield from _group(key, reward, known_sources(settings.data or data), _scored(name, settings, data))
        elif settings.data and not mix_problems(
            f.config.reward.parts, f.config.reward.mix.get("mode", "sum"), "reward"
        ):
            yield from _unscored("reward", _built("reward", f.config.reward), known_sources(settings.data) or ())


def _nodes_have_targets(key: str, reward: RewardConfig) -> Iterator[Problem]:
    """As every component node of the run must."""
    for at, node in {"mix": reward.mix, **{f"parts.{name}": node for name, node in reward.parts.items()}}.items():
        if "_target_" not in node:
            yield Problem(f"{key}.{at}", node or "null", "names no component", f"set {key}.{at}._target_")


def _group(
    key: str, reward: RewardConfig, sources: Sequence[str] | None, scored: Sequence[str] | None
) -> Iterator[Problem]:
    """``sources``: that parts may name; ``scored``: that must have a part. None: not known."""
    found = mix_problems(reward.parts, reward.mix.get("mode", "sum"), key)
    yield from found
    if reward.score is not None and reward.score not in reward.parts:
        yield Problem(f"{key}.score", reward.score, "no such part", nearest(reward.score, reward.parts))
    if sources is not None and not found:
        yield from _routes(key, reward, sources, scored or ())


def _routes(key: str, reward: RewardConfig, sources: Sequence[str], scored: Sequence[str]) -> Iterator[Problem]:
    """Parts name sources that there are, and each source has a part."""
    parts = _built(key, reward)
    for name, part in parts.items():
        for source in part.sources or () if part else ():
            if source not in sources:
                yield Problem(f"{key}.parts.{name}.sources", source, "no such data source", nearest(source, sources))
    yield from _unscored(key, parts, scored)
    reported = parts.get(reward.score) if reward.score is not None else None
    left = [source for source in scored if reported and not reported.serves(source)]
    if left:
        reason = f"does not score samples of {', '.join(left)}"
        yield Problem(f"{key}.score", reward.score, reason, "give null, for the mixed reward")


def _built(key: str, reward: RewardConfig) -> dict[str, PartConfig | None]:
    return {name: build_part(node, f"{key}.parts.{name}")[0] for name, node in reward.parts.items()}


def _unscored(key: str, parts: Mapping[str, PartConfig | None], sources: Sequence[str]) -> Iterator[Problem]:
    for source in sources:
        if not any(part and part.serves(source) for part in parts.values()):
            mend = "name it in the sources of a part, or give a part without sources"
            yield Problem(f"{key}.parts", ", ".join(parts), f"no part scores samples of {source}", mend)


def models_asked_are_served(f: Facts) -> Iterator[Problem]:
    """A part's ``served_model`` is a model of the topology, with engines that answer."""
    groups = {"reward": f.config.reward.parts} | {
        f"rollout.eval_sets.{name}.reward": settings.reward.get("parts", {})
        for name, settings in f.config.rollout.eval_sets.items()
    }
    for key, parts in groups.items():
        for name, node in parts.items():
            model = node.get("served_model")
            if model is not None and not f.serving(str(model), "regular", "decode"):
                served = [other for other in f.models if f.serving(other, "regular", "decode")]
                reason = "no model that the topology serves"
                yield Problem(f"{key}.parts.{name}.served_model", model, reason, nearest(str(model), served))


RULES: tuple[Rule, ...] = (rewards_are_sound, models_asked_are_served)
