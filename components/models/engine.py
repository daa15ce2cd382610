"""Transformer Engine's modules in the places of Megatron's own, on CUDA where it is installed. Imports Megatron.

Module by module, nothing fused: the parameters keep their names, so that one weight table serves both. Megatron's own
Transformer Engine layer moves norms into the linears behind them (``linear_qkv.layer_norm_weight``). Attention stays
torch's, which takes the masks of samples that share a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import BaseTransformerLayer

from components.models.norms import TorchNorm


def engine_spec(spec: Any, config: TransformerConfig) -> Any:
    """A layer's or block's spec with Transformer Engine's linears and norms where the config says so, else as it is."""
    return swapped(spec, _engine_modules()) if config.transformer_engine else spec


def norm(config: TransformerConfig, width: int) -> Any:
    """A norm outside of specs."""
    return _norm_class(config)(config, width, config.layernorm_epsilon)


def block_spec(spec: Any, config: TransformerConfig, vp_stage: int | None) -> Any:
    """A layer's spec as that of this stage's block, a block's as one; torch's norms serve sequence parallelism too.

    Megatron gives a lone layer's block a last norm by what is installed; Apex's, for one, is no RMSNorm.
    """
    if isinstance(spec, ModuleSpec) and issubclass(spec.module, BaseTransformerLayer):
        layers = [spec] * get_num_layers_to_build(config, vp_stage)
        spec = TransformerBlockSubmodules(layer_specs=layers, layer_norm=_norm_class(config))
    return swapped(spec, {WrappedTorchNorm: TorchNorm})


def _norm_class(config: TransformerConfig) -> Any:
    return _engine_modules()[WrappedTorchNorm] if config.transformer_engine else TorchNorm


def swapped(part: Any, table: Mapping[Any, Any]) -> Any:
    """A spec of any depth with each module that ``table`` names replaced."""
    if isinstance(part, list):
        return [swapped(each, table) for each in part]
    if is_dataclass(part) and not isinstance(part, type):
        return replace(part, **{entry.name: swapped(getattr(part, entry.name), table) for entry in fields(part)})
    return table.get(part, part) if isinstance(part, type) else part


def _engine_modules() -> Mapping[Any, Any]:
    from megatron.core.extensions import transformer_engine as engine

    return {
        ColumnParallelLinear: engine.TEColumnParallelLinear,
        RowParallelLinear: engine.TERowParallelLinear,
        WrappedTorchNorm: engine.TENorm,
    }
