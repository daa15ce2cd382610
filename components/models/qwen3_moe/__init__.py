"""Qwen3 with experts: Qwen3's attention, a softmax router, no shared expert."""

from __future__ import annotations

from typing import Any

from components.models.base import Family, HFConfig, refuse
from components.models.dense import Biases, gpt_keywords
from components.models.moe import moe_keywords, softmax_router
from components.models.qwen3_moe.weights import experts, rules


def transformer(hf: HFConfig) -> dict[str, Any]:
    """TransformerConfig keywords.

    Raises ComponentError for attention biases, which Megatron refuses beside experts, and for a router that it does not
    have.
    """
    refuse(hf, ("attention_bias",), "Megatron has no bias on attention's output in a model with experts")
    return moe_keywords(hf, experts(hf), Biases()) | softmax_router(hf) | {"qk_layernorm": True}


FAMILY = Family(architectures=("Qwen3MoeForCausalLM",), transformer=transformer, gpt=gpt_keywords, rules=rules)
