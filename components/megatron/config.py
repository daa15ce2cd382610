"""config.json and the user's overrides -> Megatron's TransformerConfig. Imports Megatron."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from components.megatron.platform import Platform
from components.models.base import Family, HFConfig
from components.models.layouts import padded_vocab
from components.models.rope import Rope
from slime_launch.errors import ComponentError

TRAINERS_OWN = {
    "tensor_model_parallel_size": "set trainer.tp",
    "pipeline_model_parallel_size": "set trainer.pp",
    "expert_model_parallel_size": "experts are split over trainer.tp; the trainer starts no expert-parallel groups",
    "expert_tensor_parallel_size": "experts are split over trainer.tp",
    "context_parallel_size": "the trainer starts no context-parallel groups",
}
"""TransformerConfig fields that must fit the process groups -> what to do instead of setting them."""


@dataclass
class ModelConfig(TransformerConfig):  # type: ignore[misc]
    """A TransformerConfig that also carries what a spec may want of the checkpoint.

    hf: config.json. gpt: GPTModel's keywords, without config and layer spec; ``vocab_size`` is padded for the ranks.
    rope: the decoder's rotary positions.
    """

    hf: Mapping[str, Any] = field(default_factory=dict)
    gpt: Mapping[str, Any] = field(default_factory=dict)
    rope: Rope | None = None


def model_config(
    family: Family, hf: HFConfig, overrides: Mapping[str, Any], platform: Platform, tp: int, pp: int
) -> ModelConfig:
    """The config of every rank's model; ``overrides`` are TransformerConfig fields and win over the family's.

    Raises ComponentError for an unknown field, one that the platform cannot serve, or values that Megatron refuses.
    """
    family.check(hf)
    rope = family.rope(hf)
    known = {entry.name for entry in fields(TransformerConfig)}
    if unknown := sorted(set(overrides) - known):
        raise ComponentError(f"model.transformer: {unknown} are no fields of Megatron's TransformerConfig")
    if fixed := [f"{name} ({why})" for name, why in TRAINERS_OWN.items() if name in overrides]:
        raise ComponentError(f"model.transformer: {', '.join(fixed)}; take these out")
    merged: dict[str, Any] = {
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "pipeline_dtype": torch.float32,
        "params_dtype": torch.float32,
        "variable_seq_lengths": pp > 1,
        # The only dispatcher that Megatron accepts beside the line above; a dense model uses none.
        "moe_token_dispatcher_type": "alltoall",
        # The loss is a sum over tokens; Megatron divides its gradient by the tokens of the whole step.
        "calculate_per_token_loss": True,
        "mrope_section": list(rope.sections),
        **platform.overrides,
        **family.transformer(hf),
        **overrides,
    }
    _refuse(merged, platform)
    gpt = family.gpt(hf)
    gpt["vocab_size"] = padded_vocab(gpt["vocab_size"], tp)
    if merged["num_query_groups"] % tp:
        raise ComponentError(
            f"trainer.tp={tp} does not divide the model's {merged['num_query_groups']} key-value heads"
        )
    try:
        config = ModelConfig(**merged, hf=hf, gpt=gpt, rope=rope)
    except (AssertionError, ValueError, TypeError) as error:
        raise ComponentError(f"model.transformer: Megatron refuses the config: {error}") from error
    _set_rotary_gain(config, rope.gain)
    return config


def _set_rotary_gain(config: ModelConfig, gain: float) -> None:
    """Megatron's attention takes the factor on turned channels from these attributes: 0.1 mscale ln(factor) + 1."""
    if gain != 1.0:
        config.yarn_rotary_scaling_factor, config.yarn_mscale, config.yarn_mscale_all_dim = math.e, 10 * (gain - 1), 0.0


def _refuse(merged: Mapping[str, Any], platform: Platform) -> None:
    wrong = [f"{name}={merged[name]}: {why}" for name, why in platform.refused.items() if merged.get(name)]
    if wrong:
        raise ComponentError(f"model.transformer on {platform.device}: {'; '.join(wrong)}; take these out")
