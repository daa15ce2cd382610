"""Sampling parameters that come with a prompt, or with a request of a generate function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slime_launch.errors import ComponentError
from slime_launch.schema.sampling import BENDS_LOGITS, RESERVED, out_of_bounds
from slime_launch.types import Prompt


def check_training(prompt: Prompt, sampling: Mapping[str, Any]) -> None:
    """Raises ComponentError, naming the source, for parameters that a prompt of training may not have.

    sampling: the run's. The trainer divides its logits by the run's temperature and knows of no penalty or grammar, so
    the logprobs of tokens sampled otherwise would not be comparable.
    """
    _check_bounds(prompt)
    for name, value in prompt.sampling.items():
        where = f"data: a prompt of source {prompt.source} has sampling.{name}={value!r:.50}"
        if name in RESERVED:
            raise ComponentError(f"{where}: {RESERVED[name]}")
        if _bends(name, value, sampling):
            raise ComponentError(f"{where}: the trainer's logprobs are without it; leave it out of training prompts")


def check_request(asked: Mapping[str, Any], sampling: Mapping[str, Any], trains: bool) -> None:
    """Raises ComponentError for parameters that a generate function may not ask for.

    sampling: those it was given; the same values again are fine. trains: what is sampled is trained on, so that what
    ``check_training`` says of prompts goes for it too.
    """
    for name, value in asked.items():
        where = f"rollout.generate: asks with sampling.{name}={value!r:.50}"
        if name in RESERVED and not (name in sampling and value == sampling[name]):
            raise ComponentError(f"{where}: {RESERVED[name]}")
        if trains and _bends(name, value, sampling):
            raise ComponentError(f"{where}: the trainer's logprobs are without it; leave it to the run in training")


def _bends(name: str, value: Any, sampling: Mapping[str, Any]) -> bool:
    """Whether the engine's logits would not be those that the run's ``sampling`` gives; null is SGLang's default."""
    if name not in BENDS_LOGITS:
        return False
    own, asked = (BENDS_LOGITS[name] if one is None else one for one in (sampling.get(name), value))
    return bool(own != asked)


def check_evaluation(prompt: Prompt) -> None:
    """Raises ComponentError for parameters that are the launcher's own, and values that SGLang refuses."""
    _check_bounds(prompt)
    for name in RESERVED.keys() & prompt.sampling.keys():
        raise ComponentError(f"data: a prompt of source {prompt.source} has sampling.{name}: {RESERVED[name]}")


def _check_bounds(prompt: Prompt) -> None:
    for name, value in prompt.sampling.items():
        if words := out_of_bounds(name, value):
            raise ComponentError(f"data: a prompt of source {prompt.source} has sampling.{name}={value!r}: not {words}")
