"""The CPU bridge's mixture-of-experts part. Imports Megatron: ``components.megatron.cpu`` imports it at the right time.

T tokens, H hidden size, E experts, K copies of a token, one for each of its experts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from megatron.core.tensor_parallel import mappings
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from megatron.core.transformer.moe import moe_layer, moe_utils
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher, MoETokenDispatcher
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class LocalTokenDispatcher(MoETokenDispatcher):  # type: ignore[misc]
    """For ranks that all hold every token and a slice of every expert: no token travels, none is dropped.

    Megatron's own dispatchers copy tokens on CUDA streams, and expect that tensor-parallel ranks hold different tokens
    (sequence parallelism): given the same ones, they would count every expert's gradient once a rank. Here the experts
    are to the ranks what Megatron's dense MLP is: the same input to all, the outputs summed.
    """

    def __init__(
        self, num_local_experts: int, local_expert_indices: Sequence[int], config: TransformerConfig, pg_collection: Any
    ) -> None:
        super().__init__(config=config, pg_collection=pg_collection)
        self._shape: tuple[int, ...] = ()
        self._counts_E: Tensor | None = None
        self._origin_K: Tensor | None = None

    def dispatch_preprocess(self, tokens: Tensor, routing_map: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [S, B, H] sorted by expert [K, H], and their weights [K]; routing_map, probs: [T, E]."""
        self._shape = tuple(tokens.shape)
        self._counts_E = routing_map.sum(dim=0)
        tokens_TH = copy_to_tensor_model_parallel_region(tokens, self.tp_group).flatten(0, 1)
        tokens_KH, probs_K, self._origin_K = moe_utils.permute(tokens_TH, routing_map, probs=probs)
        # The weights multiply each rank's slice of an expert: their gradient is a sum over the ranks too. Taken here,
        # where it is contiguous: Megatron's reduction loses the sum of a gradient that is not.
        return tokens_KH, copy_to_tensor_model_parallel_region(probs_K, self.tp_group)

    def token_dispatch(self, hidden_states: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
        """Nothing travels."""
        return hidden_states, probs

    def dispatch_postprocess(self, hidden_states: Tensor, probs: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Tokens by expert, how many each expert has [E], their weights."""
        return hidden_states, self._counts_E, probs

    def combine_preprocess(self, hidden_states: Tensor) -> Tensor:
        """Nothing to do."""
        return hidden_states

    def token_combine(self, hidden_states: Tensor) -> Tensor:
        """Nothing travels."""
        return hidden_states

    def combine_postprocess(self, hidden_states: Tensor) -> Tensor:
        """Each token's sum over its experts and over the ranks' slices of them, [S, B, H]."""
        shape_TH = (self._shape[0] * self._shape[1], self._shape[2])
        output_TH = moe_utils.unpermute(hidden_states, self._origin_K, restore_shape=shape_TH)
        return reduce_from_tensor_model_parallel_region(output_TH, self.tp_group).view(self._shape)


class TravellingTokenDispatcher(MoEAlltoAllTokenDispatcher):  # type: ignore[misc]
    """Megatron's own, for ranks that hold different tokens: each visits the ranks of its experts.

    Without the CUDA stream on which the counts of tokens go to the host: here they are there, and become the arrays
    that the exchange of tokens takes.
    """

    def _maybe_dtoh_and_synchronize(self, point: str, tokens_per_expert: Tensor | None = None) -> Tensor | None:
        for name in ("input_splits", "output_splits") if point == self.cuda_dtoh_point else ():
            splits = getattr(self, name)
            setattr(self, name, splits.numpy() if isinstance(splits, Tensor) else splits)
        return tokens_per_expert


def token_dispatcher(
    num_local_experts: int, local_expert_indices: Sequence[int], config: TransformerConfig, pg_collection: Any
) -> MoETokenDispatcher:
    """The dispatcher for the way in which ranks hold tokens: all the same ones, or each its own."""
    local = config.expert_model_parallel_size == 1 and not config.sequence_parallel
    kind = LocalTokenDispatcher if local else TravellingTokenDispatcher
    return kind(num_local_experts, local_expert_indices, config, pg_collection)


def install() -> None:
    """Bridge Megatron's MoE layer."""
    # Made at first use, unless it is there.
    MoEAlltoAllTokenDispatcher.cuda_dtoh_stream = SimpleNamespace()
    mappings._gather_along_first_dim = _of_unequal_parts(mappings._gather_along_first_dim)
    # Undefined without Transformer Engine; None chooses the plain matrix products.
    moe_utils.te_general_gemm = None
    moe_layer.MoEAlltoAllTokenDispatcher = token_dispatcher
    moe_layer.MoELayer.__init__ = _without_sequence_parallel(moe_layer.MoELayer.__init__)


def _without_sequence_parallel(init: Any) -> Any:
    """MoELayer refuses to train on tensor-parallel ranks that hold the same tokens; LocalTokenDispatcher wants them."""

    @functools.wraps(init)
    def build(layer: Any, *args: Any, **kwargs: Any) -> None:
        init(layer, *args, **kwargs)
        # Read by that refusal alone, which asks how many there are.
        layer.attn_tp_group = SimpleNamespace(size=lambda: 1)

    return build


def _of_unequal_parts(gather: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Gloo gathers parts of one size only: shorter ones are filled up, and cut again."""

    @functools.wraps(gather)
    def gathered(
        part: Tensor, group: Any, output_split_sizes: Sequence[int] | None = None, use_global_buffer: bool = False
    ) -> Tensor:
        if output_split_sizes is None or group.size() == 1:
            return gather(part, group, use_global_buffer=use_global_buffer)
        most = max(1, *output_split_sizes)
        filled = torch.cat([part, part.new_zeros(most - len(part), *part.shape[1:])])
        pieces = gather(filled, group).split(most)
        return torch.cat([piece[:count] for piece, count in zip(pieces, output_split_sizes, strict=True)])

    return gathered
