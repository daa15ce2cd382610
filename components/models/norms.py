"""torch's norms in the places of Megatron-Core's wrapper of them. Imports Megatron."""

from __future__ import annotations

import copy
from typing import Any

from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig


class TorchNorm:
    """The norm that WrappedTorchNorm makes, with sequence parallelism too.

    Norms work row by row, so that ranks which share the sequence need nothing but the sum of their gradients. Megatron
    takes it over parameters that say ``sequence_parallel``; its own wrapper refuses instead.
    """

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **options: Any) -> Any:
        """A torch.nn.RMSNorm or LayerNorm, as ``config.normalization`` says; other arguments as WrappedTorchNorm's."""
        alone = copy.copy(config)
        alone.sequence_parallel = False
        norm = WrappedTorchNorm(alone, hidden_size, eps, **options)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel
        return norm
