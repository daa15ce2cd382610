"""Qwen3's weight table."""

from __future__ import annotations

from components.models.base import HFConfig, Rule
from components.models.dense import Biases, dense_rules


def biases(hf: HFConfig) -> Biases:
    """``attention_bias`` is one switch for queries, keys, values and the output."""
    given = bool(hf.get("attention_bias"))
    return Biases(qkv=given, proj=given)


def rules(hf: HFConfig) -> tuple[Rule, ...]:
    """Every parameter of the decoder, its Hugging Face names and its layout."""
    return dense_rules(hf, biases(hf), qk_norm=True)
