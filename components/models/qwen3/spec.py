"""Qwen3's layer spec."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_config import TransformerConfig


def layer_spec(config: TransformerConfig, vp_stage: int | None) -> ModuleSpec:
    """Megatron's own GPT layer, of Megatron-Core modules only; every layer is alike, so ``vp_stage`` changes nothing.

    A spec of your own has the same signature, plus whatever keywords its node in the config gives. ``config`` also
    carries what the family read from config.json: ``config.hf`` (config.json itself) and ``config.gpt`` (the keywords
    that GPTModel will get, ``vocab_size`` padded).
    """
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    return get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization=config.normalization)
