"""The model provider of image models: frozen towers beside a decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from components.models.base import Encoder, Family
from slime_launch.errors import ComponentError

if TYPE_CHECKING:
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_config import TransformerConfig

    from components.models.omni import OmniModel


class OmniProvider:
    """Builds one pipeline stage of the model; ``encoders`` are the towers on its first stage, by name.

    layers: makes the decoder's layer spec (or block submodules).
    """

    def __init__(
        self,
        config: TransformerConfig,
        encoders: Mapping[str, Encoder],
        layers: Callable[[TransformerConfig], ModuleSpec],
    ) -> None:
        self.config = config
        self.encoders = encoders
        self.layers = layers

    def __call__(self, pre_process: bool, post_process: bool, vp_stage: int | None = None) -> OmniModel:
        """The stage's model, with the embedding and the towers (pre) and the output layer (post)."""
        from components.models.omni import OmniModel

        return OmniModel(
            self.encoders,
            config=self.config,
            transformer_layer_spec=self.layers(self.config),
            pre_process=pre_process,
            post_process=post_process,
            vp_stage=vp_stage,
            **self.config.gpt,
        )


def choose_encoders(family: Family, names: Sequence[str]) -> dict[str, Encoder]:
    """The towers of a family by name.

    Raises ComponentError for one that it does not have.
    """
    if unknown := [name for name in names if name not in family.encoders]:
        raise ComponentError(f"model.spec.encoders={list(names)}: no {unknown}; there are {list(family.encoders)}")
    return {name: family.encoders[name] for name in names}
