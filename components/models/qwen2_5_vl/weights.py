"""Qwen2.5-VL's weight table: the decoder. The tower maps name by name (``Encoder.prefix``)."""

from __future__ import annotations

from components.models.base import HFConfig, Rule
from components.models.dense import Biases, dense_rules

BIASES = Biases(qkv=True)
LEGACY = {"model.language_model.": "model.", "model.visual.": "visual."}
"""How the model's own names start -> how they start in published checkpoints and in what transformers 5 saves."""


def rules(hf: HFConfig) -> tuple[Rule, ...]:
    """Every parameter of the decoder, its Hugging Face names and its layout."""
    return dense_rules(hf, BIASES, root="model.language_model.")
