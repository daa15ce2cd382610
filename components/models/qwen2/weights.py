"""Qwen2's weight table."""

from __future__ import annotations

from components.models.base import HFConfig, Rule
from components.models.dense import Biases, dense_rules

BIASES = Biases(qkv=True)


def rules(hf: HFConfig) -> tuple[Rule, ...]:
    """Every parameter of the decoder, its Hugging Face names and its layout."""
    return dense_rules(hf, BIASES)
