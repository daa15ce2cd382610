"""Llama 3's weight table."""

from __future__ import annotations

from components.models.base import HFConfig, Rule
from components.models.dense import Biases, dense_rules


def biases(hf: HFConfig) -> Biases:
    """``attention_bias`` is one switch for queries, keys, values and the output; ``mlp_bias`` for the whole MLP."""
    attention = bool(hf.get("attention_bias"))
    return Biases(qkv=attention, proj=attention, mlp=bool(hf.get("mlp_bias")))


def rules(hf: HFConfig) -> tuple[Rule, ...]:
    """Every parameter of the decoder, its Hugging Face names and its layout."""
    return dense_rules(hf, biases(hf))
