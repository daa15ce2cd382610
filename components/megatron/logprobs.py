"""Log-probabilities and entropies from logits whose vocabulary is split over tensor-parallel ranks. Imports Megatron."""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region as sum_over_ranks
from torch import Tensor


def token_logprobs(logits_BRV: Tensor, targets_BR: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
    """(log-probability of each target [B, R], entropy of each distribution [B, R] without gradient), in nats.

    logits_BRV: this rank's columns of the padded vocabulary; the padding, ids from ``vocab`` on, has no probability.
    """
    columns = logits_BRV.shape[-1]
    first = parallel_state.get_tensor_model_parallel_rank() * columns
    logits_BRV = logits_BRV.float()
    if first + columns > vocab:
        padding_V = torch.arange(first, first + columns, device=logits_BRV.device) >= vocab
        logits_BRV = logits_BRV.masked_fill(padding_V, torch.finfo(torch.float32).min / 2)
    log_z_BR = _log_partition(logits_BRV)
    local_BR = targets_BR - first
    owned_BR = (local_BR >= 0) & (local_BR < columns)
    picked_BR = logits_BRV.gather(-1, local_BR.clamp(0, columns - 1).unsqueeze(-1)).squeeze(-1) * owned_BR
    with torch.no_grad():
        probabilities_BRV = (logits_BRV - log_z_BR.unsqueeze(-1)).exp()
        entropy_BR = log_z_BR - sum_over_ranks((probabilities_BRV * logits_BRV).sum(-1))
    return sum_over_ranks(picked_BR) - log_z_BR, entropy_BR.detach()


def _log_partition(logits_BRV: Tensor) -> Tensor:
    if parallel_state.get_tensor_model_parallel_world_size() == 1:
        return logits_BRV.logsumexp(-1)
    peak_BR = logits_BRV.detach().amax(-1)
    dist.all_reduce(peak_BR, dist.ReduceOp.MAX, group=parallel_state.get_tensor_model_parallel_group())
    return sum_over_ranks((logits_BRV - peak_BR.unsqueeze(-1)).exp().sum(-1)).log() + peak_BR
