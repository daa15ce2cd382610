"""GLM-4.5: partial rotary positions, experts behind a sigmoid router with a selection bias, a shared expert."""

from __future__ import annotations

from typing import Any

from components.models.base import Family, HFConfig
from components.models.dense import gpt_keywords
from components.models.glm4_moe.weights import biases, carried, rules
from components.models.moe import glm_experts, glm_rope, moe_keywords, sigmoid_router


def transformer(hf: HFConfig) -> dict[str, Any]:
    """TransformerConfig keywords.

    Raises ComponentError for a router that Megatron does not have.
    """
    keywords = moe_keywords(hf, glm_experts(hf), biases(hf), partial=True) | sigmoid_router(hf)
    return keywords | {"qk_layernorm": bool(hf.get("use_qk_norm"))}


def gpt(hf: HFConfig) -> dict[str, Any]:
    """GPTModel keywords."""
    return gpt_keywords(hf, glm_rope(hf))


FAMILY = Family(
    architectures=("Glm4MoeForCausalLM",),
    transformer=transformer,
    gpt=gpt,
    rules=rules,
    rope=glm_rope,
    carried=carried,
)
