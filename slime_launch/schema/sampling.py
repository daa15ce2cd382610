"""What may stand among SGLang's sampling parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from typing import Any

NAMED = ("temperature", "top_p", "max_new_tokens")
"""Those with a key of their own in ``rollout``."""

RESERVED = {
    "sampling_seed": "every rollout has its own, by the run's seed",
    "n": "a request makes one sample; set group_size or samples",
    "beam_width": "a request makes one sample; set group_size or samples",
    "stream_interval": "answers come whole",
    "custom_params": "it would reach code in the engine",
    **dict.fromkeys(
        ("stop_strs", "stop_regex_strs", "stop_str_max_len", "stop_regex_max_len", "is_normalized",
         "ebnf_full_assistant"),
        "SGLang's own, not for callers",
    ),
}  # fmt: skip
"""Parameters that are the launcher's or SGLang's own, and why."""

BENDS_LOGITS: dict[str, Any] = {
    "temperature": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0,
    "logit_bias": {}, "json_schema": None, "regex": None, "ebnf": None, "structural_tag": None, "watermark": None,
    "min_new_tokens": 0,
}  # fmt: skip
"""Parameters that change logits before logprobs are taken, with the value that does not: the trainer does without."""

BOUNDS: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda value: 0 <= value < inf, "a finite number of at least 0"),
    "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "min_p": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "top_k": (lambda value: value == -1 or value >= 1, "at least 1, or -1 for all tokens"),
    "frequency_penalty": (lambda value: -2 <= value <= 2, "from -2 to 2"),
    "presence_penalty": (lambda value: -2 <= value <= 2, "from -2 to 2"),
    "repetition_penalty": (lambda value: 0 < value <= 2, "above 0 and at most 2"),
    "min_new_tokens": (lambda value: value >= 0, "at least 0"),
    "max_new_tokens": (lambda value: value >= 1, "at least 1"),
}  # fmt: skip
"""Parameters -> (whether a value is one that SGLang takes, in words), as its SamplingParams.verify has them; an answer
of no token has no use."""


def out_of_bounds(name: str, value: Any) -> str | None:
    """What a number for ``name`` must be, where it is not; values that are no numbers are not judged."""
    if name not in BOUNDS or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    within, words = BOUNDS[name]
    return None if within(value) else words


OPENAI = {
    "temperature": "temperature", "top_p": "top_p", "max_new_tokens": "max_tokens", "stop": "stop",
    "frequency_penalty": "frequency_penalty", "presence_penalty": "presence_penalty", "sampling_seed": "seed",
}  # fmt: skip
"""SGLang's parameters that OpenAI's chat completions have too, and their names there; others are of one server."""

OPENAI_OWN = ("model", "messages", "n", "stream", "tools", "functions")
"""Fields of a chat completion request that no sampling parameter may be called."""


def openai_names(fields: Mapping[str, str | None]) -> dict[str, str | None]:
    """Sampling parameters -> names in requests to a server, ``fields`` over OpenAI's; None: left out."""
    return {**OPENAI, **fields}
