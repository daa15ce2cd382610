"""What an engine needs on a machine without a GPU: its environment, and a decode that does not loop over requests."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_ENV = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "SLIME_LAUNCH_SKIP_IMPORTS": "flashinfer,megatron,scipy,sklearn",
}
KERNELS = Path(__file__).resolve().parent / "kernels"
DECODE_TARGET = "sglang.srt.layers.attention.torch_native_backend.TorchNativeAttnBackend._run_sdpa_forward_decode"


def environment(server_args: Mapping[str, Any]) -> dict[str, str]:
    """What a server of these arguments needs on CPU.

    SGLang gives each rank a NUMA node of its own unless it is told a core for each, which then go round. It talks
    through gloo only if it finds no NCCL, which the torch package brings along.
    """
    ranks = int(server_args.get("tp_size", 1) * server_args.get("pp_size", 1) * server_args.get("dp_size", 1))
    if ranks == 1:
        return dict(_ENV)
    cores = sorted(os.sched_getaffinity(0))
    bound = "|".join(str(cores[rank % len(cores)]) for rank in range(ranks))
    return _ENV | {"SGLANG_CPU_OMP_THREADS_BIND": bound, "SGLANG_NCCL_SO_PATH": "no-nccl-on-cpu"}


def batched_decode(
    original: Callable[..., Tensor],
    backend: Any,
    query_BHD: Tensor,
    output_BHD: Tensor,
    k_cache_SKD: Tensor,
    v_cache_SKD: Tensor,
    req_to_token: Tensor,
    req_pool_indices: Tensor,
    seq_lens: Tensor,
    encoder_lens: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """One gather and one attention for all B requests of a decode step, where the original takes them one by one.

    H query heads, K key-value heads, D head size, S slots of the KV pool, L tokens of the longest request. The keys of
    shorter requests are padded with their own first token and masked. Cross attention, sliding windows and caches of
    another type go the original way.
    """
    windowed = (options.get("sliding_window_size") or -1) > -1
    if encoder_lens is not None or windowed or k_cache_SKD.dtype != query_BHD.dtype:
        pools = (k_cache_SKD, v_cache_SKD, req_to_token, req_pool_indices, seq_lens)
        return original(backend, query_BHD, output_BHD, *pools, encoder_lens=encoder_lens, **options)
    import torch

    longest = int(seq_lens.max())
    valid_BL = torch.arange(longest, device=seq_lens.device) < seq_lens[:, None]
    slots_BL = req_to_token[req_pool_indices, :longest]
    slots_N = torch.where(valid_BL, slots_BL, slots_BL[:, :1]).reshape(-1)
    requests, heads, size = query_BHD.shape
    kv_heads = k_cache_SKD.shape[1]
    keys_BKLD, values_BKLD = (
        # twice as quick as indexing
        cache.index_select(0, slots_N).view(requests, longest, kv_heads, cache.shape[2]).transpose(1, 2)
        for cache in (k_cache_SKD, v_cache_SKD)
    )
    # G query heads that share a key-value head, as G queries of that head: nothing is repeated
    out_BKGD = torch.nn.functional.scaled_dot_product_attention(
        query_BHD.reshape(requests, kv_heads, heads // kv_heads, size),
        keys_BKLD,
        values_BKLD,
        attn_mask=valid_BL[:, None, None],
        scale=options.get("scaling"),
    )
    output_BHD[:] = out_BKGD.reshape(requests, heads, -1)
    return output_BHD
