"""GLM-4.5V's weight table: the decoder. The tower maps name by name (``Encoder.prefix``)."""

from __future__ import annotations

from components.models.base import HFConfig, Rule, text_part
from components.models.dense import Biases
from components.models.moe import glm_experts, moe_rules


def biases(hf: HFConfig) -> Biases:
    """Of queries, keys and values, there unless config.json says otherwise; the output never has one."""
    return Biases(qkv=bool(text_part(hf).get("attention_bias", True)))


def rules(hf: HFConfig) -> tuple[Rule, ...]:
    """Every parameter of the decoder, its Hugging Face names and its layout."""
    return moe_rules(hf, glm_experts(hf), biases(hf), root="model.language_model.", qk_norm=False)
