"""Attention by torch's own kernels, in the place of Megatron-Core's local one. Imports Megatron.

Megatron's DotProductAttention writes every score down: a matrix [B, heads, S, S] that softmax and the second product
read again, and that backward keeps. ``scaled_dot_product_attention`` works tile by tile (Dao et al. 2022,
arXiv:2205.14135) and keeps one number a row.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from components.models.context import Context, this_context
from slime_launch.errors import ComponentError


class TorchAttention(DotProductAttention):  # type: ignore[misc]
    """Causal attention without sinks or windows; a config that asks for these gets Megatron's own computation.

    Ranks of context parallelism gather the keys and values of whole rows (see ``components.models.context``).
    S tokens of a row, Q of them with this rank, B rows, N query heads and G key heads of this rank, D channels.

    Raises ComponentError for sinks or windows with context parallelism.
    """

    def __init__(self, config: TransformerConfig, *args: Any, **kwargs: Any) -> None:
        alone = copy.copy(config)  # Megatron's own serves no context parallelism, and refuses it here
        alone.context_parallel_size = 1
        super().__init__(alone, *args, **kwargs)
        self.tiled = config.softmax_type == "vanilla" and config.window_size is None
        self.context = this_context() if config.context_parallel_size > 1 else Context()
        if config.context_parallel_size > 1 and not self.tiled:
            raise ComponentError(
                f"trainer.parallel.cp={config.context_parallel_size}: attention with sinks or windows (softmax_type="
                f"{config.softmax_type}, window_size={config.window_size}) is computed on whole rows only; set it to 1"
            )

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> Tensor:
        """Context [Q, B, N * D] of query [Q, B, N, D] and key, value [Q, B, G, D].

        attention_mask: bool [B, 1, Q, S], true where a token must not look; None: causal.
        """
        if not self.tiled or attention_bias is not None or packed_seq_params is not None:
            context: Tensor = super().forward(
                query, key, value, attention_mask, attn_mask_type, attention_bias, packed_seq_params
            )
            return context
        seen = None if attention_mask is None else ~attention_mask
        if self.context.size == 1:
            return self._attend(query, key, value, seen)
        widths = [key.shape[-1], value.shape[-1]]
        key, value = self.context.whole(torch.cat([key, value], -1)).split(widths, -1)
        parts, width = [], len(query) // 2
        for part, number in enumerate(self.context.chunks):
            mine, until = slice(part * width, (part + 1) * width), (number + 1) * width  # no token looks further
            looks = causal_lower_right(width, until) if seen is None else seen[:, :, mine, :until]
            parts.append(self._attend(query[mine], key[:until], value[:until], looks))
        return torch.cat(parts)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None) -> Tensor:
        """Context of query with key and value. seen: true where a token looks; None: causal, all of one length."""
        query_BNQD, key_BGSD, value_BGSD = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        context_BNQD = scaled_dot_product_attention(
            query_BNQD,
            key_BGSD,
            value_BGSD,
            attn_mask=seen,
            dropout_p=self.attention_dropout.p if self.training else 0.0,
            is_causal=seen is None,
            scale=self.softmax_scale,
            enable_gqa=query.shape[2] != key.shape[2],
        )
        return context_BNQD.permute(2, 0, 1, 3).flatten(2)
