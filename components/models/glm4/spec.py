"""GLM-4's layer spec."""

from __future__ import annotations

from typing import TYPE_CHECKING

from components.models.glm4.weights import biases

if TYPE_CHECKING:
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_config import TransformerConfig


def layer_spec(config: TransformerConfig, vp_stage: int | None) -> ModuleSpec:
    """Megatron's own GPT layer with norms after attention and MLP; see ``components.models.qwen3.spec.layer_spec``."""
    from components.models.decoder import local_layer_spec

    return local_layer_spec(config, biases(config.hf), post_norms=True)
