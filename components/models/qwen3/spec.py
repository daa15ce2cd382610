"""Qwen3's layer spec."""

from __future__ import annotations

from typing import TYPE_CHECKING

from components.models.qwen3.weights import biases

if TYPE_CHECKING:
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_config import TransformerConfig


def layer_spec(config: TransformerConfig, vp_stage: int | None) -> ModuleSpec:
    """Megatron's own GPT layer, of Megatron-Core modules only; every layer is alike, so ``vp_stage`` changes nothing.

    A spec of your own has the same signature, plus whatever keywords its node in the config gives. ``config`` also
    carries what the family read from config.json: ``config.hf`` (config.json itself), ``config.rope`` (rotary
    positions) and ``config.gpt`` (the keywords that GPTModel will get, ``vocab_size`` padded).
    """
    from components.models.decoder import local_layer_spec

    return local_layer_spec(config, biases(config.hf))
