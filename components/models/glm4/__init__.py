"""GLM-4 (0414), dense: norms before and after each block, half of each head's channels turning, in adjacent pairs."""

from __future__ import annotations

from typing import Any

from components.models.base import Family, HFConfig, needed
from components.models.dense import gpt_keywords, transformer_keywords
from components.models.glm4.weights import biases, rules
from components.models.rope import Rope, rope_of

PARTIAL_ROTARY_FACTOR = 0.5
"""The architecture's, where config.json gives none."""


def rope(hf: HFConfig) -> Rope:
    """Rotary positions."""
    return rope_of(hf, PARTIAL_ROTARY_FACTOR)


def transformer(hf: HFConfig) -> dict[str, Any]:
    """TransformerConfig keywords.

    Raises ComponentError for what the architecture does not have, and without ``head_dim``, whose default is no rule.
    """
    needed(hf, ("head_dim",))
    return transformer_keywords(hf, biases(hf), partial=True) | {"rotary_interleaved": True}


def gpt(hf: HFConfig) -> dict[str, Any]:
    """GPTModel keywords."""
    return gpt_keywords(hf, rope(hf))


FAMILY = Family(architectures=("Glm4ForCausalLM",), transformer=transformer, gpt=gpt, rules=rules, rope=rope)
