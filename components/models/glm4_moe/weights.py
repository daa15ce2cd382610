"""GLM-4.5's weight table."""

from __future__ import annotations

from components.models.base import HFConfig, Rule
from components.models.dense import Biases
from components.models.moe import glm_experts, moe_rules


def biases(hf: HFConfig) -> Biases:
    """Of queries, keys and values; the output never has one."""
    return Biases(qkv=bool(hf.get("attention_bias")))


def rules(hf: HFConfig) -> tuple[Rule, ...]:
    """Every parameter of the decoder, its Hugging Face names and its layout."""
    return moe_rules(hf, glm_experts(hf), biases(hf), root="model.", qk_norm=bool(hf.get("use_qk_norm")))


def carried(hf: HFConfig) -> tuple[str, ...]:
    """Layers after the last one: they predict further tokens, for an engine that decodes speculatively."""
    first, extra = hf["num_hidden_layers"], hf.get("num_nextn_predict_layers") or 0
    return tuple(f"model.layers.{number}." for number in range(first, first + extra))
