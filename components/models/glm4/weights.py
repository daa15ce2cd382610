"""GLM-4's weight table."""

from __future__ import annotations

from components.models.base import HFConfig, Rule
from components.models.dense import GLM_NORMS, Biases, dense_rules


def biases(hf: HFConfig) -> Biases:
    """``attention_bias``, on where config.json does not name it, is for queries, keys and values alone."""
    return Biases(qkv=bool(hf.get("attention_bias", True)))


def rules(hf: HFConfig) -> tuple[Rule, ...]:
    """Every parameter of the decoder, its Hugging Face names and its layout."""
    return dense_rules(hf, biases(hf), norms=GLM_NORMS, merged=True)
