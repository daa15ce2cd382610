"""Rules about sampling, over-sampling and held-out sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from slime_launch.annotations import fault
from slime_launch.checks.facts import Facts, Rule
from slime_launch.errors import Problem
from slime_launch.schema.build import nearest
from slime_launch.schema.sampling import BENDS_LOGITS, NAMED, RESERVED, out_of_bounds
from slime_launch.sglang_source import sampling_parameters


def sampling_parameters_exist(f: Facts) -> Iterator[Problem]:
    """Sampling parameters are SGLang's, have its types, and are not the launcher's own."""
    rollout = f.config.rollout
    yield from _parameters("rollout.sampling", rollout.sampling)
    for name, one in rollout.eval_sets.items():
        yield from _parameters(f"rollout.eval_sets.{name}.sampling", one.sampling)


def _parameters(key: str, given: Mapping[str, Any]) -> Iterator[Problem]:
    known = sampling_parameters()
    for name, value in given.items() if known else ():
        if name in RESERVED:
            yield Problem(f"{key}.{name}", value, RESERVED[name], "remove it")
        elif name not in known:
            yield Problem(f"{key}.{name}", value, "no such SGLang sampling parameter", nearest(name, known))
        elif reason := fault(value, known[name]):
            yield Problem(f"{key}.{name}", value, reason, "see SGLang's SamplingParams")
        elif words := out_of_bounds(name, value):
            yield Problem(f"{key}.{name}", value, "SGLang refuses it", f"give a value {words}")


def training_samples_like_the_trainer(f: Facts) -> Iterator[Problem]:
    """Nothing in training changes logits before logprobs are taken; what has a key of its own is given there."""
    for name, value in f.config.rollout.sampling.items():
        key = f"rollout.sampling.{name}"
        if name in NAMED:
            yield Problem(key, value, "it has a key of its own", f"set rollout.{name}")
        elif name in BENDS_LOGITS and value not in (None, BENDS_LOGITS[name]):
            reason = "it changes the engine's logits, and the trainer's logprobs would be without it"
            yield Problem(key, value, reason, "remove it; a set of rollout.eval_sets may have it")


def held_out_sets_fit(f: Facts) -> Iterator[Problem]:
    """pass@k has k samples somewhere; greedy answers are asked of every set anyway."""
    rollout = f.config.rollout
    most = max([rollout.group_size, rollout.eval_samples, *(one.samples or 0 for one in rollout.eval_sets.values())])
    yield from _ks("rollout.pass_at", rollout.pass_at, most, "group_size or eval_samples")
    for name, one in rollout.eval_sets.items():
        key = f"rollout.eval_sets.{name}"
        yield from _ks(f"{key}.pass_at", one.pass_at, one.samples or rollout.eval_samples, f"{key}.samples")
        if "temperature" in one.sampling and not one.sampling["temperature"]:
            reason = "greedy answers are reported for every set, as eval/<set>/greedy"
            yield Problem(f"{key}.sampling.temperature", one.sampling["temperature"], reason, "give more than 0")


def _ks(key: str, ks: list[int], most: int, where: str) -> Iterator[Problem]:
    for k in ks:
        if k < 1 or k > most:
            yield Problem(key, k, f"pass@{k} needs {max(k, 1)} samples of a prompt, there are {most}", f"raise {where}")


def over_sampling_has_a_use(f: Facts) -> Iterator[Problem]:
    """Kept generations need something to be cut short; the draws must allow the over-sampling."""
    rollout = f.config.rollout
    if rollout.partial.keep and rollout.oversample <= 1:
        reason = "nothing is ever cut short where no more groups are begun than wanted"
        yield Problem("rollout.partial.keep", True, reason, "set rollout.oversample above 1")
    if rollout.partial.mask_old and not rollout.partial.keep:
        reason = "without partial.keep no token is of older weights"
        yield Problem("rollout.partial.mask_old", True, reason, "set rollout.partial.keep=true or remove it")
    if rollout.draw_limit < rollout.oversample:
        reason = f"fewer than rollout.oversample={rollout.oversample:g} begins with"
        yield Problem("rollout.draw_limit", rollout.draw_limit, reason, "raise it")


RULES: tuple[Rule, ...] = (
    sampling_parameters_exist, training_samples_like_the_trainer, held_out_sets_fit, over_sampling_has_a_use,
)  # fmt: skip
