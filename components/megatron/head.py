"""The output layer and its log-probabilities in one, a few rows at a time. Imports Megatron.

The logits of all positions are never there: of a chunk of rows they are made, reduced to a log-probability and an
entropy a row, and dropped; backward makes them again, as Liger Kernel's fused cross-entropy does (Hsu et al. 2024,
arXiv:2410.10989). Vocabulary-parallel as in Megatron-LM (Shoeybi et al. 2019, arXiv:1909.08053), section 3.

K rows, D hidden size, V columns of this rank, N samples, R response tokens, S tokens, B rows of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

NEVER = torch.finfo(torch.float32).min / 2
"""The logit of a column that has no probability."""


@dataclass(frozen=True)
class Head:
    """Log-probabilities of tokens from hidden states.

    vocab: ids below this are real, columns from there on are padding. temperature: logits are divided by it.
    banned_tokens: ids that the engine never samples. chunk: rows whose logits are there at once.
    """

    vocab: int
    temperature: float
    banned_tokens: tuple[int, ...]
    chunk: int

    def __call__(
        self,
        hidden_SBD: Tensor,
        weight_VD: Tensor,
        slots_NR: Tensor,
        targets_NR: Tensor,
        mask_NR: Tensor,
        sequence_parallel: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """(Log-probability of each target [N, R], entropy of each distribution [N, R] without gradient), in nats.

        Both are zero, and nothing is computed, where the mask is. hidden_SBD: the last norm's output; with sequence
        parallelism this rank's part of the sequence. weight_VD: this rank's rows of the output layer. slots_NR: flat
        index into [B, S] of the place that predicts each target.
        """
        if sequence_parallel:
            hidden_SBD = gather_from_sequence_parallel_region(hidden_SBD)  # backward sums over the ranks
        length, rows, _ = hidden_SBD.shape
        counted_K = mask_NR.flatten().nonzero().squeeze(-1)
        slots_K = slots_NR.flatten()[counted_K]
        hidden_KD = hidden_SBD.flatten(0, 1)[slots_K % length * rows + slots_K // length]
        if not sequence_parallel:
            hidden_KD = copy_to_tensor_model_parallel_region(hidden_KD)
        logprobs_K, entropy_K = _Score.apply(hidden_KD, weight_VD, targets_NR.flatten()[counted_K], self)
        return tuple(_spread(value_K, counted_K, mask_NR) for value_K in (logprobs_K, entropy_K))

    def hidden_columns(self, weight_VD: Tensor) -> Tensor:
        """This rank's columns that have no probability: padding and banned tokens."""
        first, columns = _first(weight_VD), len(weight_VD)
        ids = [*(token for token in self.banned_tokens if token < self.vocab), *range(self.vocab, first + columns)]
        mine = [token - first for token in ids if first <= token < first + columns]
        return torch.tensor(mine, dtype=torch.int64, device=weight_VD.device)


class _Score(torch.autograd.Function):  # type: ignore[misc]
    """hidden [K, D], weight [V, D], targets [K] -> log-probabilities [K], entropies [K]; gradients of the former."""

    @staticmethod
    def forward(ctx: Any, hidden_KD: Tensor, weight_VD: Tensor, targets_K: Tensor, head: Head) -> tuple[Tensor, Tensor]:
        """One pass over the chunks; the exponentials of a lone chunk are kept, there is room for them."""
        hidden_columns = head.hidden_columns(weight_VD)
        local_K, owned_K = _local(targets_K, weight_VD)
        log_z, logprobs, entropies, kept = [], [], [], None
        for some in _chunks(len(hidden_KD), head.chunk):
            logits_KV = _logits(hidden_KD[some], weight_VD, head.temperature, hidden_columns)
            peak_K = _over_ranks(logits_KV.amax(-1), dist.ReduceOp.MAX)
            logits_KV -= peak_K.unsqueeze(-1)
            picked_K = logits_KV.gather(-1, local_K[some].unsqueeze(-1)).squeeze(-1) * owned_K[some]
            kept = logits_KV.exp()
            sums_3K = torch.stack([kept.sum(-1), logits_KV.mul_(kept).sum(-1), picked_K])
            z_K, weighted_K, picked_K = _over_ranks(sums_3K, dist.ReduceOp.SUM)
            log_z.append(z_K.log() + peak_K)
            logprobs.append(picked_K - z_K.log())
            entropies.append(z_K.log() - weighted_K / z_K)
            if len(hidden_KD) <= head.chunk:
                kept /= z_K.unsqueeze(-1)
        empty_K = hidden_KD.new_empty(0, dtype=torch.float32)
        one = kept if kept is not None and len(hidden_KD) <= head.chunk else None
        ctx.save_for_backward(hidden_KD, weight_VD, local_K, owned_K, torch.cat([*log_z, empty_K]), hidden_columns, one)
        ctx.head = head
        entropy_K = torch.cat([*entropies, empty_K])
        ctx.mark_non_differentiable(entropy_K)
        return torch.cat([*logprobs, empty_K]), entropy_K

    @staticmethod
    def backward(ctx: Any, grad_K: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """The gradient of a row's logits is that of its log-probability times (target - probabilities)."""
        hidden_KD, weight_VD, local_K, owned_K, log_z_K, hidden_columns, one = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden_KD = torch.empty_like(hidden_KD) if wants_hidden else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if wants_weight else None
        for some in _chunks(len(hidden_KD), ctx.head.chunk):
            slope_KV = one
            if slope_KV is None:
                slope_KV = _logits(hidden_KD[some], weight_VD, ctx.head.temperature, hidden_columns)
                slope_KV.sub_(log_z_K[some].unsqueeze(-1)).exp_()
            scale_K = grad_K[some] / ctx.head.temperature
            slope_KV = slope_KV.mul_(-scale_K.unsqueeze(-1)) if one is None else slope_KV * -scale_K.unsqueeze(-1)
            slope_KV.scatter_add_(-1, local_K[some].unsqueeze(-1), (scale_K * owned_K[some]).unsqueeze(-1))
            slope_KV = slope_KV.to(weight_VD.dtype)
            if grad_hidden_KD is not None:
                torch.mm(slope_KV, weight_VD, out=grad_hidden_KD[some])
            if grad_weight_VD is not None:
                _add_product(grad_weight_VD, slope_KV.T, hidden_KD[some])
        return grad_hidden_KD, None if grad_weight_VD is None else grad_weight_VD.to(weight_VD.dtype), None, None


def _logits(hidden_KD: Tensor, weight_VD: Tensor, temperature: float, hidden_columns: Tensor) -> Tensor:
    """float32 logits [K, V] of these rows."""
    logits_KV = torch.mm(hidden_KD, weight_VD.T).float()
    if temperature != 1.0:
        logits_KV /= temperature
    return logits_KV.index_fill_(-1, hidden_columns, NEVER) if len(hidden_columns) else logits_KV


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += torch.mm(left, right)


def _chunks(rows: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _spread(value_K: Tensor, places_K: Tensor, like_NR: Tensor) -> Tensor:
    """Values at their places of [N, R], zeros elsewhere."""
    return value_K.new_zeros(like_NR.numel()).index_copy(0, places_K, value_K).view(like_NR.shape)


def _first(weight_VD: Tensor) -> int:
    return int(parallel_state.get_tensor_model_parallel_rank()) * len(weight_VD)


def _local(targets_K: Tensor, weight_VD: Tensor) -> tuple[Tensor, Tensor]:
    """(This rank's column of each target, clamped; 1 where it is this rank's)."""
    local_K = targets_K - _first(weight_VD)
    owned_K = (local_K >= 0) & (local_K < len(weight_VD))
    return local_K.clamp(0, len(weight_VD) - 1), owned_K.float()


def _over_ranks(value: Tensor, operation: Any) -> Tensor:
    if parallel_state.get_tensor_model_parallel_world_size() > 1:
        dist.all_reduce(value, operation, group=parallel_state.get_tensor_model_parallel_group())
    return value
