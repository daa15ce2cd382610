"""A norm with the arguments and the parameter name of Megatron-Core's, so that the weight map finds it."""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class PreciseNorm(torch.nn.Module):
    """RMS norm (Zhang and Sennrich, https://arxiv.org/abs/1910.07467) whose mean square is in double precision."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        # Megatron sums this parameter's gradient over ranks that hold parts of the sequence
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden_SBD: Tensor) -> Tensor:
        """Normed over the last dimension, in the type that it came in."""
        scale_SB1 = hidden_SBD.double().square().mean(-1, keepdim=True).add(self.eps).rsqrt()
        return (hidden_SBD * scale_SB1).to(hidden_SBD.dtype) * self.weight
