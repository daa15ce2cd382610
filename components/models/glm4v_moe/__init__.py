"""GLM-4.5V: transformers' Glm4vMoeForConditionalGeneration, a frozen vision tower beside GLM-4.5's decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from components.models.base import Family, HFConfig, refuse, text_part
from components.models.dense import gpt_keywords
from components.models.glm4v_moe.weights import biases, rules
from components.models.moe import glm_experts, glm_rope, moe_keywords, sigmoid_router
from components.models.vision import image_encoder, image_positions
from slime_launch.errors import ComponentError

if TYPE_CHECKING:
    from torch.nn import Module


def transformer(hf: HFConfig) -> dict[str, Any]:
    """TransformerConfig keywords of the decoder.

    Raises ComponentError for a router that Megatron does not have, and for norms that Glm4vMoeTextAttention leaves out.
    """
    text = text_part(hf)
    refuse(text, ("use_qk_norm",), "Glm4vMoeTextAttention is built without norms on queries and keys")
    if len(glm_rope(hf).sections) == 1:
        raise ComponentError("config.json: rope_parameters has no mrope_section: which channels follow which axis")
    return moe_keywords(hf, glm_experts(hf), biases(hf), partial=True) | sigmoid_router(text)


def gpt(hf: HFConfig) -> dict[str, Any]:
    """GPTModel keywords of the decoder."""
    return gpt_keywords(hf, glm_rope(hf))


def vision_tower(hf: HFConfig) -> Module:
    """transformers' own Glm4vMoeVisionModel, weights not initialised to anything of use."""
    from transformers.models.glm4v_moe.configuration_glm4v_moe import Glm4vMoeVisionConfig
    from transformers.models.glm4v_moe.modeling_glm4v_moe import Glm4vMoeVisionModel

    return Glm4vMoeVisionModel(Glm4vMoeVisionConfig(**hf["vision_config"]))


FAMILY = Family(
    architectures=("Glm4vMoeForConditionalGeneration",),
    transformer=transformer,
    gpt=gpt,
    rules=rules,
    positions=image_positions,
    encoders={"vision": image_encoder(vision_tower)},
    rope=glm_rope,
)
