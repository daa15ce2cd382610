"""Log-probabilities and entropies from logits split over tensor-parallel ranks by vocabulary. Imports Megatron."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region as sum_over_ranks
from torch import Tensor


def token_logprobs(
    logits_NRV: Tensor, targets_NR: Tensor, vocab: int, banned_tokens: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """(log-probability of each target [N, R], entropy of each distribution [N, R] without gradient), in nats.

    logits_NRV: this rank's columns of the padded vocabulary. The padding, ids from ``vocab`` on, and ``banned_tokens``,
        which the engine never samples, have no probability.
    """
    columns = logits_NRV.shape[-1]
    first = parallel_state.get_tensor_model_parallel_rank() * columns
    logits_NRV = logits_NRV.float()
    if first + columns > vocab or banned_tokens:
        ids_V = torch.arange(first, first + columns, device=logits_NRV.device)
        hidden_V = (ids_V >= vocab) | torch.isin(ids_V, ids_V.new_tensor(tuple(banned_tokens)))
        logits_NRV = logits_NRV.masked_fill(hidden_V, torch.finfo(torch.float32).min / 2)
    log_z_NR = _log_partition(logits_NRV)
    local_NR = targets_NR - first
    owned_NR = (local_NR >= 0) & (local_NR < columns)
    picked_NR = logits_NRV.gather(-1, local_NR.clamp(0, columns - 1).unsqueeze(-1)).squeeze(-1) * owned_NR
    with torch.no_grad():
        probabilities_NRV = (logits_NRV - log_z_NR.unsqueeze(-1)).exp()
        entropy_NR = log_z_NR - sum_over_ranks((probabilities_NRV * logits_NRV).sum(-1))
    return sum_over_ranks(picked_NR) - log_z_NR, entropy_NR.detach()


def _log_partition(logits_NRV: Tensor) -> Tensor:
    if parallel_state.get_tensor_model_parallel_world_size() == 1:
        return logits_NRV.logsumexp(-1)
    peak_NR = logits_NRV.detach().amax(-1)
    dist.all_reduce(peak_NR, dist.ReduceOp.MAX, group=parallel_state.get_tensor_model_parallel_group())
    return sum_over_ranks((logits_NRV - peak_NR.unsqueeze(-1)).exp().sum(-1)).log() + peak_NR
