"""The hash behind seeded sampling: MurmurHash3 x86_32 by Austin Appleby (https://github.com/aappleby/smhasher)."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_BYTES = 16  # hashed for each entry: seed 8, position 4, column 4


def murmur_hash32(seeds_N: Tensor, positions_N: Tensor, columns_M: Tensor) -> Tensor:
    """uint32 [N, M]: the hash of (64-bit seed, 32-bit position, 32-bit column), as SGLang's GPU kernel computes it."""
    seeds_N = seeds_N.view(torch.int64)
    hash_N = torch.zeros_like(seeds_N)
    for block_N in (seeds_N & _MASK, (seeds_N >> 32) & _MASK, positions_N.to(torch.int64) & _MASK):
        hash_N = _mix(hash_N, block_N)
    return _finish(_mix(hash_N[:, None], columns_M.to(torch.int64)[None] & _MASK)).to(torch.uint32)


def _mix(hash_: Tensor, block: Tensor) -> Tensor:
    # products overflow 64 bits; their low 32 bits, which alone are kept, do not suffer
    block = _rotate(block * 0xCC9E2D51 & _MASK, 15) * 0x1B873593 & _MASK
    return _rotate(hash_ ^ block, 13) * 5 + 0xE6546B64 & _MASK


def _rotate(word: Tensor, bits: int) -> Tensor:
    return (word << bits | word >> (32 - bits)) & _MASK


def _finish(hash_: Tensor) -> Tensor:
    hash_ = hash_ ^ _BYTES
    hash_ = (hash_ ^ hash_ >> 16) * 0x85EBCA6B & _MASK
    hash_ = (hash_ ^ hash_ >> 13) * 0xC2B2AE35 & _MASK
    return hash_ ^ hash_ >> 16


class MurmurOperator:
    """``torch.ops.sgl_kernel.murmur_hash32_cpu``, which SGLang calls by its ``default`` overload."""

    default = staticmethod(murmur_hash32)
