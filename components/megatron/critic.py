"""A critic is its model with one value a token in the place of the vocabulary's logits. Imports Megatron."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor
from torch.nn import Module

from slime_launch.errors import ComponentError

HEAD = "output_layer"
DECODER = "language_model"
"""Where a model beside towers may keep its decoder, the output layer in it."""


class ValueHead(torch.nn.Linear):  # type: ignore[misc]
    """Hidden states [S, B, hidden] -> values [S, B, 1] in float32, in the place of a Megatron output layer.

    Every tensor-parallel rank holds it whole. With sequence parallelism its input is this rank's part of the sequence
    and its output all of it. Drawn from N(0, init_method_std) by ``seed`` alone: the same in every layout.
    """

    def __init__(self, config: Any, width: int, seed: int) -> None:
        super().__init__(width, 1, bias=False, dtype=torch.float32)
        self.sequence_parallel = bool(config.sequence_parallel)
        # Read by Megatron, which sums such gradients over the tensor-parallel ranks.
        self.weight.sequence_parallel = self.sequence_parallel
        self._std, self._seed = float(config.init_method_std), seed
        self.reset()

    def reset_parameters(self) -> None:
        """torch's own initialisation; ``reset`` follows."""

    def reset(self) -> None:
        """Draw the weights anew."""
        drawn = torch.empty(self.weight.shape).normal_(
            0.0, self._std, generator=torch.Generator().manual_seed(self._seed)
        )
        with torch.no_grad():
            self.weight.copy_(drawn)

    def forward(
        self, hidden_SBD: Tensor, weight: Tensor | None = None, runtime_gather_output: bool | None = None
    ) -> tuple[Tensor, None]:
        """As Megatron's output layer is called; a tied embedding (``weight``) and gathering mean nothing here."""
        values_SB1 = super().forward(hidden_SBD.float())
        if self.sequence_parallel:
            values_SB1 = gather_from_sequence_parallel_region(values_SB1, tensor_parallel_output_grad=False)
        return values_SB1, None


def make_critic(model: Module, seed: int) -> None:
    """Give a built stage its value head where it has an output layer, as wide as the decoder that was built.

    Raises ComponentError for a last stage without an output layer that could be replaced.
    """
    owner = decoder_of(model)
    owner.share_embeddings_and_output_weights = False
    if getattr(owner, "post_process", True) is False:
        return
    layer = getattr(owner, HEAD, None)
    if layer is None:
        raise ComponentError(
            f"model.spec: {type(model).__name__} has no {HEAD}, nor has its {DECODER}; a critic's value head replaces "
            "one"
        )
    config = owner.config
    width = getattr(layer, "input_size", None) or getattr(layer, "in_features", None) or config.hidden_size
    setattr(owner, HEAD, ValueHead(config, int(width), seed))


def decoder_of(model: Module) -> Module:
    """The part of a model that has the output layer: itself, or its ``language_model``."""
    inner = getattr(model, DECODER, None)
    return inner if isinstance(inner, Module) and not hasattr(model, HEAD) else model


def value_heads(model: Module) -> list[ValueHead]:
    """The value heads of a stage: one on a critic's last, none elsewhere."""
    return [module for module in model.modules() if isinstance(module, ValueHead)]
