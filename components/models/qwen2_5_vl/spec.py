"""Qwen2.5-VL's spec: a provider that builds the whole model, a frozen tower beside a Qwen2 decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from components.models.base import ModelProvider
from components.models.provider import OmniProvider, choose_encoders
from components.models.qwen2_5_vl import FAMILY
from components.models.qwen2_5_vl.weights import BIASES

if TYPE_CHECKING:
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_config import TransformerConfig


def decoder_layers(config: TransformerConfig) -> ModuleSpec:
    """Megatron's own GPT layer."""
    from components.models.decoder import local_layer_spec

    return local_layer_spec(config, BIASES)


def layer_spec(config: TransformerConfig, vp_stage: int | None, encoders: Sequence[str] = ("vision",)) -> ModelProvider:
    """The model provider; ``encoders`` names the towers to build.

    ``config`` carries config.json as ``config.hf`` and GPTModel's keywords as ``config.gpt``.
    Raises ComponentError for a tower that Qwen2.5-VL does not have.
    """
    return OmniProvider(config, choose_encoders(FAMILY, encoders), decoder_layers)
