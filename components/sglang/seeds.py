"""Sampling by a seed of each request on CPU, where SGLang knows it only together with attention backends it lacks here.

SGLang draws a token by the Gumbel trick (Maddison et al. 2014, https://arxiv.org/abs/1411.0030) from a hash of request
seed, position and token. That depends on nothing else, so a sample is the same whatever is generated beside it, as far
as its logits are: they differ in the seventh digit with the shape of the batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

BATCH_TARGET = "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.from_schedule_batch"
FILTER_TARGET = "sglang.srt.layers.sampler.top_k_top_p_min_p_sampling_from_probs_torch"
_SEED_BITS = 63


def add_seeds(info: Any, _: type, batch: Any, *__: Any, **___: Any) -> Any:
    """Give every request of a batch its ``sampling_seed``, and a random one to those that came without."""
    if info.sampling_seed is None:
        import torch

        given = [request.sampling_params.sampling_seed for request in batch.reqs]
        seeds = [random.getrandbits(_SEED_BITS) if seed is None else seed for seed in given]
        info.sampling_seed = torch.tensor(seeds, dtype=torch.int64, device=info.device)
    return info


def filter_min_p(
    original: Callable[..., Any],
    probs_BV: Tensor,
    top_ks: Tensor,
    top_ps: Tensor,
    min_ps_B: Tensor,
    need_min_p_sampling: bool,
    *seeds: Tensor,
    **options: Any,
) -> Any:
    """Apply min_p before the original, which refuses it beside seeds.

    The order does not matter: what min_p drops is the tail, so the mass before every token that stays is the same.
    """
    if need_min_p_sampling:
        least_B1 = probs_BV.max(-1, keepdim=True).values * min_ps_B[:, None]
        probs_BV = probs_BV.masked_fill(probs_BV < least_B1, 0.0)
    return original(probs_BV, top_ks, top_ps, min_ps_B, False, *seeds, **options)
