"""Qwen2.5-VL: a frozen vision tower with windowed attention beside a Qwen2 decoder with multimodal positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from components.models.base import Family, HFConfig, require, text_part
from components.models.dense import gpt_keywords, transformer_keywords
from components.models.qwen2_5_vl.weights import BIASES, LEGACY, rules
from components.models.vision import image_encoder, image_positions, require_sections

if TYPE_CHECKING:
    from torch.nn import Module


def transformer(hf: HFConfig) -> dict[str, Any]:
    """TransformerConfig keywords of the decoder.

    Raises ComponentError for what the architecture does not have.
    """
    keywords = transformer_keywords(hf, BIASES)
    text = text_part(hf)
    head_dim = text["hidden_size"] // text["num_attention_heads"]
    require(text, {"head_dim": head_dim}, "Qwen2_5_VLAttention cuts the hidden size into its heads")
    require_sections(hf)
    return keywords


def vision_tower(hf: HFConfig) -> Module:
    """transformers' own vision tower, weights not initialised to anything of use."""
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    return Qwen2_5_VisionTransformerPretrainedModel(Qwen2_5_VLVisionConfig(**hf["vision_config"]))


FAMILY = Family(
    architectures=("Qwen2_5_VLForConditionalGeneration",),
    transformer=transformer,
    gpt=gpt_keywords,
    rules=rules,
    positions=image_positions,
    encoders={"vision": image_encoder(vision_tower)},
    legacy=LEGACY,
)
