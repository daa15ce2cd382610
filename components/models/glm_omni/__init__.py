"""GLM-Omni: transformers' Glm4vForConditionalGeneration (GLM-4.1V), a frozen vision tower beside a GLM decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from components.models.base import Family, HFConfig, require, text_part
from components.models.dense import gpt_keywords, transformer_keywords
from components.models.glm_omni.weights import BIASES, rules
from components.models.vision import image_encoder, image_positions, require_sections

if TYPE_CHECKING:
    from torch.nn import Module


def transformer(hf: HFConfig) -> dict[str, Any]:
    """TransformerConfig keywords of the decoder.

    Raises ComponentError for shapes that Glm4vTextModel itself would read in two ways.
    """
    text = text_part(hf)
    head_dim = text["hidden_size"] // text["num_attention_heads"]
    require(text, {"head_dim": head_dim, "attention_bias": True}, "Glm4vTextAttention is built with these values")
    require_sections(hf)
    return transformer_keywords(hf, BIASES, partial=True) | {"rotary_interleaved": True}


def vision_tower(hf: HFConfig) -> Module:
    """transformers' own Glm4vVisionModel, weights not initialised to anything of use."""
    from transformers.models.glm4v.configuration_glm4v import Glm4vVisionConfig
    from transformers.models.glm4v.modeling_glm4v import Glm4vVisionModel

    return Glm4vVisionModel(Glm4vVisionConfig(**hf["vision_config"]))


FAMILY = Family(
    architectures=("Glm4vForConditionalGeneration",),
    transformer=transformer,
    gpt=gpt_keywords,
    rules=rules,
    positions=image_positions,
    encoders={"vision": image_encoder(vision_tower)},
)
