"""Attention of a whole batch at once on CPU, where SGLang's torch_native takes its requests one by one.

H query heads, K key-value heads, G = H / K query heads that share one, D head size, S slots of the KV pool, B requests,
L tokens of the longest request, E new tokens of the request that has most (1 in decoding), N new tokens altogether.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_BACKEND = "sglang.srt.layers.attention.torch_native_backend.TorchNativeAttnBackend"
DECODE_TARGET = f"{_BACKEND}._run_sdpa_forward_decode"
EXTEND_TARGET = f"{_BACKEND}._run_sdpa_forward_extend"
# beyond these one by one is quicker: padding is computed too, and what a mask hides of long prompts
_MOST_WORK = 2.0  # in units of what is asked for
_MOST_NEW = 128


@dataclass(frozen=True)
class Rows:
    """Where the keys of a batch lie, and who may see which; the same for every layer of a forward pass.

    slots_N: slots of B * L keys, those beyond a request's end replaced by its first. seen: what each query sees,
    bool, [B, 1, 1, L] or [B, 1, G * E, L]. places_N: where each new token stands among B * E, None where all do.
    """

    slots_N: Tensor
    seen: Tensor
    requests: int
    new: int
    places_N: Tensor | None = None

    @classmethod
    def of_decode(cls, req_to_token: Tensor, rows_B: Tensor, lengths_B: Tensor) -> Rows:
        """One new token a request, which sees all of it."""
        import torch

        longest = int(lengths_B.max())
        valid_BL = torch.arange(longest, device=lengths_B.device) < lengths_B[:, None]
        slots_BL = req_to_token[rows_B, :longest]
        slots_N = torch.where(valid_BL, slots_BL, slots_BL[:, :1]).reshape(-1)
        return cls(slots_N, valid_BL[:, None, None], len(rows_B), 1)

    @classmethod
    def of_extend(
        cls, req_to_token: Tensor, rows_B: Tensor, prefixes_B: Tensor, new_B: Tensor, share: int
    ) -> Rows | None:
        """Several new tokens a request after a prefix, ``share`` heads a key-value head; None where it does not pay."""
        import torch

        requests, lengths_B = len(rows_B), prefixes_B + new_B
        longest, most = int(lengths_B.max()), int(new_B.max())
        if most == 1:
            return cls.of_decode(req_to_token, rows_B, lengths_B)
        if most > _MOST_NEW or requests * longest * most > _MOST_WORK * int((lengths_B * new_B).sum()):
            return None
        keys_L, new_E = torch.arange(longest, device=rows_B.device), torch.arange(most, device=rows_B.device)
        slots_BL = req_to_token[rows_B, :longest]
        slots_N = torch.where(keys_L < lengths_B[:, None], slots_BL, slots_BL[:, :1]).reshape(-1)
        seen_BEL = keys_L <= (prefixes_B[:, None] + new_E)[:, :, None]
        places_N = None
        if int(new_B.sum()) < requests * most:
            places_N = (new_E < new_B[:, None]).reshape(-1).nonzero()[:, 0]
        return cls(slots_N, seen_BEL.repeat(1, share, 1)[:, None], requests, most, places_N)

    def attend(self, query_NHD: Tensor, keys_SKD: Tensor, values_SKD: Tensor, scaling: float | None) -> Tensor:
        """[N, H, D] of the values: one gather of keys, one of values, one attention for all requests."""
        import torch

        heads, size = query_NHD.shape[1:]
        kv_heads = keys_SKD.shape[1]
        keys_BKLD, values_BKLD = (
            # twice as quick as indexing
            pool.index_select(0, self.slots_N).view(self.requests, -1, kv_heads, pool.shape[2]).transpose(1, 2)
            for pool in (keys_SKD, values_SKD)
        )
        if self.new == 1:
            query_BKGD = query_NHD.view(self.requests, kv_heads, heads // kv_heads, size)
            out_BKGD = torch.nn.functional.scaled_dot_product_attention(
                query_BKGD, keys_BKLD, values_BKLD, attn_mask=self.seen, scale=scaling
            )
            return out_BKGD.reshape(self.requests, heads, -1)
        if self.places_N is not None:
            padded = query_NHD.new_zeros(self.requests * self.new, heads, size)
            query_NHD = padded.index_copy_(0, self.places_N, query_NHD)
        # the G query heads that share a key-value head, as queries of that head: nothing is repeated
        shape = (self.requests, self.new, kv_heads, heads // kv_heads, size)
        query_BKQD = query_NHD.reshape(shape).permute(0, 2, 3, 1, 4).reshape(self.requests, kv_heads, -1, size)
        out_BKQD = torch.nn.functional.scaled_dot_product_attention(
            query_BKQD, keys_BKLD, values_BKLD, attn_mask=self.seen, scale=scaling
        )
        out_BKGED = out_BKQD.reshape(self.requests, kv_heads, heads // kv_heads, self.new, -1)
        out_NHD = out_BKGED.permute(0, 3, 1, 2, 4).reshape(self.requests * self.new, heads, -1)
        return out_NHD if self.places_N is None else out_NHD.index_select(0, self.places_N)


@dataclass(frozen=True)
class Parts:
    """A prefill as batches of requests that are alike: prompts, and the last tokens of prompts that are known.

    Each part with the places of its tokens among the N, None where it has all.
    """

    parts: tuple[tuple[Tensor | None, Rows], ...]

    @classmethod
    def of_extend(
        cls, req_to_token: Tensor, rows_B: Tensor, prefixes_B: Tensor, new_B: Tensor, share: int
    ) -> Parts | None:
        """Requests parted by the power of two of their new tokens; None where a part does not pay."""
        import torch

        sizes = [count.bit_length() for count in new_B.tolist()]
        if 0 in sizes:
            return None
        if len(set(sizes)) == 1:
            rows = Rows.of_extend(req_to_token, rows_B, prefixes_B, new_B, share)
            return None if rows is None else cls(((None, rows),))
        parts, sizes_B = [], torch.tensor(sizes, device=new_B.device)
        sizes_N = sizes_B.repeat_interleave(new_B)
        for size in set(sizes):
            own = (sizes_B == size).nonzero()[:, 0]
            rows = Rows.of_extend(req_to_token, rows_B[own], prefixes_B[own], new_B[own], share)
            if rows is None:
                return None
            parts.append(((sizes_N == size).nonzero()[:, 0], rows))
        return cls(tuple(parts))

    def attend(self, query_NHD: Tensor, keys_SKD: Tensor, values_SKD: Tensor, scaling: float | None) -> Tensor:
        """[N, H, D] of the values."""
        out_NHD = query_NHD.new_empty(*query_NHD.shape[:2], values_SKD.shape[2])
        for places, rows in self.parts:
            if places is None:
                return rows.attend(query_NHD, keys_SKD, values_SKD, scaling)
            out_NHD.index_copy_(0, places, rows.attend(query_NHD[places], keys_SKD, values_SKD, scaling))
        return out_NHD


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
    """One attention for all B requests of a decode step.

    Cross attention, sliding windows and caches of another type go the original way.
    """
    if _special(query_BHD, k_cache_SKD, encoder_lens, options):
        pools = (k_cache_SKD, v_cache_SKD, req_to_token, req_pool_indices, seq_lens)
        return original(backend, query_BHD, output_BHD, *pools, encoder_lens=encoder_lens, **options)
    rows = Rows.of_decode(req_to_token, req_pool_indices, seq_lens)
    output_BHD[:] = rows.attend(query_BHD, k_cache_SKD, v_cache_SKD, options.get("scaling"))
    return output_BHD


def batched_extend(
    original: Callable[..., Tensor],
    backend: Any,
    query_NHD: Tensor,
    output_NHD: Tensor,
    k_cache_SKD: Tensor,
    v_cache_SKD: Tensor,
    req_to_token: Tensor,
    req_pool_indices: Tensor,
    seq_lens: Tensor,
    extend_prefix_lens: Tensor,
    extend_seq_lens: Tensor,
    encoder_lens: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """One attention for all like requests of a prefill.

    What ``batched_decode`` leaves to the original, and long prompts, go the original way.
    """
    rows = None
    if options.get("causal") and not _special(query_NHD, k_cache_SKD, encoder_lens, options):
        share = query_NHD.shape[1] // k_cache_SKD.shape[1]
        rows = Parts.of_extend(req_to_token, req_pool_indices, extend_prefix_lens, extend_seq_lens, share)
    if rows is None:
        pools = (k_cache_SKD, v_cache_SKD, req_to_token, req_pool_indices, seq_lens)
        lengths = (extend_prefix_lens, extend_seq_lens)
        return original(backend, query_NHD, output_NHD, *pools, *lengths, encoder_lens=encoder_lens, **options)
    output_NHD[:] = rows.attend(query_NHD, k_cache_SKD, v_cache_SKD, options.get("scaling"))
    return output_NHD


def _special(query_NHD: Tensor, keys_SKD: Tensor, encoder_lens: Tensor | None, options: dict[str, Any]) -> bool:
    windowed = (options.get("sliding_window_size") or -1) > -1
    return encoder_lens is not None or windowed or keys_SKD.dtype != query_NHD.dtype
