"""What may stand among SGLang's sampling parameters."""

from __future__ import annotations

from collections.abc import Mapping
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
