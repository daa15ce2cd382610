"""GLM-Omni's spec: a provider that builds the whole model, frozen towers beside a GLM decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from components.models.base import ModelProvider
from components.models.glm_omni import FAMILY
from components.models.glm_omni.weights import BIASES
from components.models.provider import OmniProvider, choose_encoders

if TYPE_CHECKING:
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_config import TransformerConfig


def decoder_layers(config: TransformerConfig) -> ModuleSpec:
    """Megatron's own GPT layer with GLM's post-norms."""
    from components.models.decoder import local_layer_spec

    return local_layer_spec(config, BIASES, post_norms=True)


def layer_spec(config: TransformerConfig, vp_stage: int | None, encoders: Sequence[str] = ("vision",)) -> ModelProvider:
    """The model provider; ``encoders`` names the towers to build.

    ``config`` carries config.json as ``config.hf`` and GPTModel's keywords as ``config.gpt``.
    Raises ComponentError for a tower that GLM-Omni does not have.
    """
    return OmniProvider(config, choose_encoders(FAMILY, encoders), decoder_layers)
