"""Qwen2 and Qwen2.5, dense: biases on queries, keys and values, tied or untied embeddings."""

from __future__ import annotations

from typing import Any

from components.models.base import Family, HFConfig
from components.models.dense import gpt_keywords, transformer_keywords
from components.models.qwen2.weights import BIASES, rules


def transformer(hf: HFConfig) -> dict[str, Any]:
    """TransformerConfig keywords.

    Raises ComponentError for what the architecture does not have.
    """
    return transformer_keywords(hf, BIASES)


FAMILY = Family(architectures=("Qwen2ForCausalLM",), transformer=transformer, gpt=gpt_keywords, rules=rules)
