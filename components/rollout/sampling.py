"""Sampling parameters that come with a prompt."""

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
        bends = BENDS_LOGITS.get(name)
        neutral = sampling["temperature"] if name == "temperature" else bends
        if name in BENDS_LOGITS and value not in (None, neutral):
            raise ComponentError(f"{where}: the trainer's logprobs are without it; leave it out of training prompts")


def check_evaluation(prompt: Prompt) -> None:
    """Raises ComponentError for parameters that are the launcher's own, and values that SGLang refuses."""
    _check_bounds(prompt)
    for name in RESERVED.keys() & prompt.sampling.keys():
        raise ComponentError(f"data: a prompt of source {prompt.source} has sampling.{name}: {RESERVED[name]}")


def _check_bounds(prompt: Prompt) -> None:
    for name, value in prompt.sampling.items():
        if words := out_of_bounds(name, value):
            raise ComponentError(f"data: a prompt of source {prompt.source} has sampling.{name}={value!r}: not {words}")
