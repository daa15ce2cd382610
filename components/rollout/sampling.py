"""Sampling parameters that come with a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slime_launch.errors import ComponentError
from slime_launch.schema.sampling import BENDS_LOGITS, RESERVED
from slime_launch.types import Prompt


def check_training(prompt: Prompt, sampling: Mapping[str, Any]) -> None:
    """Raises ComponentError, naming the source, for parameters that a prompt of training may not have.

    sampling: the run's. The trainer divides its logits by the run's temperature and knows of no penalty or grammar, so
    the logprobs of tokens sampled otherwise would not be comparable.
    """
    for name, value in prompt.sampling.items():
        where = f"data: a prompt of source {prompt.source} has sampling.{name}={value!r:.50}"
        if name in RESERVED:
            raise ComponentError(f"{where}: {RESERVED[name]}")
        bends = BENDS_LOGITS.get(name)
        neutral = sampling["temperature"] if name == "temperature" else bends
        if name in BENDS_LOGITS and value not in (None, neutral):
            raise ComponentError(f"{where}: the trainer's logprobs are without it; leave it out of training prompts")


def check_evaluation(prompt: Prompt) -> None:
    """Raises ComponentError for parameters that are the launcher's own."""
    for name in RESERVED.keys() & prompt.sampling.keys():
        raise ComponentError(f"data: a prompt of source {prompt.source} has sampling.{name}: {RESERVED[name]}")
