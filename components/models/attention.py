"""Attention by torch's own kernel, in the place of Megatron-Core's local one. Imports Megatron.

Megatron's DotProductAttention writes every score down: a matrix [B, heads, S, S] that softmax and the second product
read again, and that backward keeps. ``scaled_dot_product_attention`` works tile by tile (Dao et al. 2022,
arXiv:2205.14135) and keeps one number a row.
"""

from __future__ import annotations

from typing import Any

from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class TorchAttention(DotProductAttention):  # type: ignore[misc]
    """Causal attention without sinks or windows; a config that asks for these gets Megatron's own computation.

    S tokens, B rows, N query heads and G key heads of this rank, D channels.
    """

    def __init__(self, config: TransformerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.tiled = config.softmax_type == "vanilla" and config.window_size is None

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
        """Context [S, B, N * D] of query [S, B, N, D] and key, value [S, B, G, D].

        attention_mask: bool [B, 1, S, S], true where a token must not look; None: causal.
        """
        if not self.tiled or attention_bias is not None or packed_seq_params is not None:
            context: Tensor = super().forward(
                query, key, value, attention_mask, attn_mask_type, attention_bias, packed_seq_params
            )
            return context
        query_BNSD, key_BGSD, value_BGSD = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        context_BNSD = scaled_dot_product_attention(
            query_BNSD,
            key_BGSD,
            value_BGSD,
            attn_mask=None if attention_mask is None else ~attention_mask,
            dropout_p=self.attention_dropout.p if self.training else 0.0,
            is_causal=attention_mask is None,
            scale=self.softmax_scale,
            enable_gqa=query.shape[2] != key.shape[2],
        )
        return context_BNSD.permute(2, 0, 1, 3).flatten(2)
