"""GLM-Omni: transformers' Glm4vForConditionalGeneration, a frozen vision tower beside a GLM decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from components.models.base import Encoder, Family, HFConfig, dense_transformer, require, rotary
from components.models.glm_omni.positions import positions
from components.models.glm_omni.weights import rules
from slime_launch.errors import ComponentError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


def transformer(hf: HFConfig) -> dict[str, Any]:
    """TransformerConfig keywords of the decoder.

    Raises ComponentError for shapes that Glm4vTextModel itself would read in two ways.
    """
    text = hf["text_config"]
    head_dim = text["hidden_size"] // text["num_attention_heads"]
    require(text, {"head_dim": head_dim, "attention_bias": True}, "Glm4vTextAttention is built with these values")
    sections = text["rope_parameters"].get("mrope_section")
    rotary_dim = int(head_dim * text["rope_parameters"].get("partial_rotary_factor", 1.0))
    if not sections or 2 * sum(sections) != rotary_dim:
        raise ComponentError(
            f"config.json: rope_parameters.mrope_section={sections} must add up to half of {rotary_dim} rotary channels"
        )
    return dense_transformer(text) | {
        "add_qkv_bias": True,
        "rotary_interleaved": True,
        "mrope_section": list(sections),
    }


def gpt(hf: HFConfig) -> dict[str, Any]:
    """GPTModel keywords of the decoder."""
    return rotary(hf["text_config"]) | {
        "position_embedding_type": "mrope",
        "share_embeddings_and_output_weights": bool(hf.get("tie_word_embeddings", False)),
    }


def vision_tower(hf: HFConfig) -> Module:
    """transformers' own Glm4vVisionModel, weights not initialised to anything of use."""
    from transformers.models.glm4v.configuration_glm4v import Glm4vVisionConfig
    from transformers.models.glm4v.modeling_glm4v import Glm4vVisionModel

    return Glm4vVisionModel(Glm4vVisionConfig(**hf["vision_config"]))


def encode_images(tower: Module, media: Mapping[str, Tensor]) -> Tensor:
    """Features [image tokens, hidden] from ``pixel_values`` [patches, features] and ``image_grid_thw`` [images, 3]."""
    features: Tensor = tower(media["pixel_values"], grid_thw=media["image_grid_thw"]).pooler_output
    return features


VISION = Encoder(
    tower=vision_tower,
    encode=encode_images,
    media=("pixel_values", "image_grid_thw"),
    token="image_token_id",
    prefix="model.visual.",
)

FAMILY = Family(
    architectures=("Glm4vForConditionalGeneration",),
    transformer=transformer,
    gpt=gpt,
    rules=rules,
    positions=positions,
    encoders={"vision": VISION},
)
