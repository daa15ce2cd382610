"""Qwen3, dense: per-head RMS norms on queries and keys, tied or untied embeddings."""

from __future__ import annotations

from typing import Any

from components.models.base import Family, HFConfig, dense_transformer, require, rotary
from components.models.qwen3.weights import rules


def transformer(hf: HFConfig) -> dict[str, Any]:
    """TransformerConfig keywords.

    Raises ComponentError for what the dense Qwen3 checkpoints do not use: attention bias, sliding windows.
    """
    require(hf, {"attention_bias": False, "use_sliding_window": False}, "not part of the dense Qwen3 models")
    keywords = dense_transformer(hf)
    # One section over all channel pairs: with equal axes this is plain rotary embedding by the batch's positions.
    return keywords | {"qk_layernorm": True, "mrope_section": [keywords["kv_channels"] // 2]}


def gpt(hf: HFConfig) -> dict[str, Any]:
    """GPTModel keywords."""
    return rotary(hf) | {
        "position_embedding_type": "mrope",
        "share_embeddings_and_output_weights": bool(hf.get("tie_word_embeddings", False)),
    }


FAMILY = Family(architectures=("Qwen3ForCausalLM",), transformer=transformer, gpt=gpt, rules=rules)
