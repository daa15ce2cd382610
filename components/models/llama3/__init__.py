"""Llama 3, 3.1, 3.2 and what shares their architecture: no biases unless config.json asks for them."""

from __future__ import annotations

from typing import Any

from components.models.base import Family, HFConfig
from components.models.dense import gpt_keywords, transformer_keywords
from components.models.llama3.weights import biases, rules


def transformer(hf: HFConfig) -> dict[str, Any]:
    """TransformerConfig keywords.

    Raises ComponentError for what the architecture does not have.
    """
    return transformer_keywords(hf, biases(hf))


FAMILY = Family(architectures=("LlamaForCausalLM",), transformer=transformer, gpt=gpt_keywords, rules=rules)
