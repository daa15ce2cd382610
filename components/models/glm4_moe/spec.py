"""GLM-4.5's layer spec."""

from __future__ import annotations

from typing import TYPE_CHECKING

from components.models.moe import block_spec

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
    from megatron.core.transformer.transformer_config import TransformerConfig


def layer_spec(config: TransformerConfig, vp_stage: int | None) -> TransformerBlockSubmodules:
    """Megatron's own GPT layers, with experts where the checkpoint has them."""
    return block_spec(config, vp_stage)
