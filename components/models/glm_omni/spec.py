"""GLM-Omni's spec: a provider that builds the whole model, frozen towers beside a GLM decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from components.models.base import Encoder, ModelProvider
from components.models.glm_omni import FAMILY
from slime_launch.errors import ComponentError

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig

    from components.models.glm_omni.model import OmniModel


class OmniProvider:
    """Builds one pipeline stage of the model; ``encoders`` are the towers on its first stage, by name."""

    def __init__(self, config: TransformerConfig, encoders: Mapping[str, Encoder]) -> None:
        self.config = config
        self.encoders = encoders

    def __call__(self, pre_process: bool, post_process: bool, vp_stage: int | None) -> OmniModel:
        """The stage's model, with the embedding and the towers (pre) and the output layer (post)."""
        from components.models.glm_omni.model import OmniModel, omni_layer_spec

        return OmniModel(
            self.encoders,
            config=self.config,
            transformer_layer_spec=omni_layer_spec(self.config),
            pre_process=pre_process,
            post_process=post_process,
            vp_stage=vp_stage,
            **self.config.gpt,
        )


def layer_spec(config: TransformerConfig, vp_stage: int | None, encoders: Sequence[str] = ("vision",)) -> ModelProvider:
    """The model provider; ``encoders`` names the towers to build.

    ``config`` carries config.json as ``config.hf`` and GPTModel's keywords as ``config.gpt``.
    Raises ComponentError for a tower that GLM-Omni does not have.
    """
    unknown = [name for name in encoders if name not in FAMILY.encoders]
    if unknown:
        raise ComponentError(f"model.spec.encoders={list(encoders)}: no {unknown}; there are {list(FAMILY.encoders)}")
    return OmniProvider(config, {name: FAMILY.encoders[name] for name in encoders})
