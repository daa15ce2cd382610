"""Qwen3, dense: per-head RMS norms on queries and keys, tied or untied embeddings."""

from __future__ import annotations

from typing import Any

from components.models.base import Family, HFConfig, needed
from components.models.dense import gpt_keywords, transformer_keywords
from components.models.qwen3.weights import biases, rules


def transformer(hf: HFConfig) -> dict[str, Any]:
    """TransformerConfig keywords.

    Raises ComponentError for what the architecture does not have, and without ``head_dim``, whose default is no rule.
    """
    needed(hf, ("head_dim",))
    return transformer_keywords(hf, biases(hf)) | {"qk_layernorm": True}


FAMILY = Family(architectures=("Qwen3ForCausalLM",), transformer=transformer, gpt=gpt_keywords, rules=rules)
