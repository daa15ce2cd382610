"""Qwen3's layers with a norm of our own.

The engines serve the model as SGLang writes it: a spec may change how a layer computes, not what.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from components.models.qwen3.spec import layer_spec as qwen3_spec

if TYPE_CHECKING:
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_config import TransformerConfig


def layer_spec(config: TransformerConfig, vp_stage: int | None, precise: bool = True) -> ModuleSpec:
    """Qwen3's layer; with ``precise`` the norms before attention and MLP are summed in double precision.

    ``precise`` is an argument of ours, set in YAML beside ``_target_``.
    """
    spec = qwen3_spec(config, vp_stage)
    if precise:
        from my_project.norm import PreciseNorm

        spec.submodules = replace(spec.submodules, input_layernorm=PreciseNorm, pre_mlp_layernorm=PreciseNorm)
    return spec
