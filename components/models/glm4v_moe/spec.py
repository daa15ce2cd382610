"""GLM-4.5V's spec: a provider that builds the whole model, a frozen tower beside a decoder with experts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from components.models.base import ModelProvider
from components.models.glm4v_moe import FAMILY
from components.models.moe import block_spec
from components.models.provider import OmniProvider, choose_encoders

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig


def layer_spec(config: TransformerConfig, vp_stage: int | None, encoders: Sequence[str] = ("vision",)) -> ModelProvider:
    """The model provider; ``encoders`` names the towers to build.

    ``config`` carries config.json as ``config.hf`` and GPTModel's keywords as ``config.gpt``.
    Raises ComponentError for a tower that GLM-4.5V does not have.
    """
    return OmniProvider(config, choose_encoders(FAMILY, encoders), partial(block_spec, vp_stage=vp_stage))
