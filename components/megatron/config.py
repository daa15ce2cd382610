"""config.json and the user's overrides -> Megatron's TransformerConfig. Imports Megatron."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from components.megatron.parallel import Sizes
from components.megatron.platform import Platform
from components.megatron.recompute import RECOMPUTE
from components.models.base import Family, HFConfig
from components.models.layouts import padded_vocab
from components.models.rope import Rope
from slime_launch.errors import ComponentError

TRAINERS_OWN = {
    "recompute_granularity": "set trainer.recompute",
    "tensor_model_parallel_size": "set trainer.parallel.tp",
    "pipeline_model_parallel_size": "set trainer.parallel.pp",
    "virtual_pipeline_model_parallel_size": "set trainer.parallel.vpp",
    "expert_model_parallel_size": "set trainer.parallel.ep",
    "expert_tensor_parallel_size": "experts are split over trainer.parallel.tp",
    "context_parallel_size": "set trainer.parallel.cp",
    "sequence_parallel": "set trainer.parallel.sp",
    "bf16": "set trainer.precision",
    "params_dtype": "set trainer.precision",
    "pipeline_dtype": "set trainer.precision",
}
"""TransformerConfig fields that must fit the process groups -> what to do instead of setting them."""


@dataclass
class ModelConfig(TransformerConfig):  # type: ignore[misc]
    """A TransformerConfig that also carries what a spec may want of the checkpoint.

    hf: config.json. hf_checkpoint: its folder. gpt: GPTModel's keywords, without config and layer spec; ``vocab_size``
    is padded for the ranks. rope: the decoder's rotary positions. transformer_engine: layers are built of Transformer
    Engine's modules.
    """

    hf: Mapping[str, Any] = field(default_factory=dict)
    hf_checkpoint: str = ""
    transformer_engine: bool = False
    gpt: Mapping[str, Any] = field(default_factory=dict)
    rope: Rope | None = None


def model_config(
    family: Family,
    hf: HFConfig,
    overrides: Mapping[str, Any],
    platform: Platform,
    sizes: Sizes,
    *,
    hf_checkpoint: str = "",
    precision: str = "float32",
    critic: bool = False,
    recompute: str = "none",
) -> ModelConfig:
    """The config of every rank's model; ``overrides`` are TransformerConfig fields and win over the family's.

    precision: float32 or bfloat16, of weights and activations. critic: no output layer is tied to the embedding.
    recompute: a row of ``RECOMPUTE``.
    Raises ComponentError for an unknown field, one that the platform cannot serve, or values that Megatron refuses.
    """
    family.check(hf)
    rope = family.rope(hf)
    known = {entry.name for entry in fields(TransformerConfig)}
    if unknown := sorted(set(overrides) - known):
        raise ComponentError(f"model.transformer: {unknown} are no fields of Megatron's TransformerConfig")
    dtype = dtype_of(precision)
    if fixed := [f"{name} ({why})" for name, why in TRAINERS_OWN.items() if name in overrides]:
        raise ComponentError(f"model.transformer: {', '.join(fixed)}; take these out")
    merged: dict[str, Any] = {
        "tensor_model_parallel_size": sizes.tp,
        "pipeline_model_parallel_size": sizes.pp,
        "virtual_pipeline_model_parallel_size": sizes.virtual,
        "context_parallel_size": sizes.cp,
        "expert_model_parallel_size": sizes.ep,
        "sequence_parallel": sizes.sp,
        "bf16": dtype is torch.bfloat16,
        "pipeline_dtype": dtype,
        "params_dtype": dtype,
        "variable_seq_lengths": sizes.pp > 1,
        # Messages between two stages that are each other's next and previous need an order.
        "batch_p2p_comm": sizes.vpp == 1,
        # The only dispatcher that Megatron accepts beside the line above; a dense model uses none.
        "moe_token_dispatcher_type": "alltoall",
        # The loss is a sum over tokens; Megatron divides its gradient by the tokens of the whole step.
        "calculate_per_token_loss": True,
        "mrope_section": list(rope.sections),
        **platform.overrides,
        **family.transformer(hf),
        **RECOMPUTE[recompute],
        **overrides,
    }
    engine = platform.engine()
    _refuse(merged, platform, sizes, engine)
    gpt = family.gpt(hf)
    gpt["vocab_size"] = padded_vocab(gpt["vocab_size"], sizes.tp)
    gpt["share_embeddings_and_output_weights"] = gpt.get("share_embeddings_and_output_weights", False) and not critic
    if merged["num_query_groups"] % sizes.tp:
        raise ComponentError(
            f"trainer.parallel.tp={sizes.tp} does not divide the model's {merged['num_query_groups']} key-value heads"
        )
    carried: dict[str, Any] = {
        "hf": hf,
        "gpt": gpt,
        "rope": rope,
        "hf_checkpoint": hf_checkpoint,
        "transformer_engine": engine,
    }
    try:
        config = ModelConfig(**merged, **carried)
    except (AssertionError, ValueError, TypeError) as error:
        raise ComponentError(f"model.transformer: Megatron refuses the config: {error}") from error
    _set_rotary_gain(config, rope.gain)
    return config


def _set_rotary_gain(config: ModelConfig, gain: float) -> None:
    """Megatron's attention takes the factor on turned channels from these attributes: 0.1 mscale ln(factor) + 1."""
    if gain != 1.0:
        config.yarn_rotary_scaling_factor, config.yarn_mscale, config.yarn_mscale_all_dim = math.e, 10 * (gain - 1), 0.0


def dtype_of(precision: str) -> torch.dtype:
    """float32 or bfloat16 by name; raises ComponentError for another."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if precision not in known:
        raise ComponentError(f"trainer.precision={precision}: choose one of {', '.join(known)}")
    return known[precision]


def _refuse(merged: Mapping[str, Any], platform: Platform, sizes: Sizes, engine: bool) -> None:
    wrong = [f"{name}={merged[name]}: {why}" for name, why in platform.refused.items() if merged.get(name)]
    if wrong:
        raise ComponentError(f"model.transformer on {platform.device}: {'; '.join(wrong)}; take these out")
    if sizes.ep > 1 and sizes.tp > 1 and not sizes.sp:
        raise ComponentError(
            f"trainer.parallel.ep={sizes.ep}: Megatron-Core 0.16.1 moves tokens to experts from tensor-parallel ranks "
            "only if these share the sequence; set trainer.parallel.sp=true"
        )
    # A plan for GPUs is looked at on machines without any, too.
    bare = platform.device == "cuda" and torch.cuda.is_available() and not engine
    if bare and merged.get("num_moe_experts"):
        raise ComponentError(
            "a model with experts: Megatron-Core 0.16.1's router calls Transformer Engine's product; install "
            "transformer_engine on the GPU machines"
        )
