"""The hash behind seeded sampling: MurmurHash3 x86_32 by Austin Appleby (https://github.com/aappleby/smhasher)."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_BYTES = 16  # hashed for each entry: seed 8, position 4, column 4


def murmur_hash32(seeds_N: Tensor, positions_N: Tensor, columns_M: Tensor) -> Tensor:
    """uint32 [N, M]: the hash of (64-bit seed, 32-bit position, 32-bit column), as SGLang's GPU kernel computes it.

    What depends on row or column alone is done for those; the rest in place, in 32-bit words that wrap around.
    """
    seeds_N = seeds_N.view(torch.int64)
    hash_N = torch.zeros_like(seeds_N)
    for block_N in (seeds_N & _MASK, (seeds_N >> 32) & _MASK, positions_N.to(torch.int64) & _MASK):
        hash_N = _turn(hash_N ^ _scramble(block_N))
    block_M = _scramble(columns_M.to(torch.int64) & _MASK)
    hash_NM = _int32(hash_N)[:, None] ^ _int32(block_M)
    high_NM = _shift_right(hash_NM, 19)
    hash_NM.bitwise_left_shift_(13).bitwise_or_(high_NM).mul_(5).add_(_signed(0xE6546B64)).bitwise_xor_(_BYTES)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        hash_NM.bitwise_xor_(_shift_right(hash_NM, shift)).mul_(_signed(factor))
    return hash_NM.bitwise_xor_(_shift_right(hash_NM, 16)).view(torch.uint32)


def _scramble(block: Tensor) -> Tensor:
    # products overflow 64 bits; their low 32 bits, which alone are kept, do not suffer
    return _rotate(block * 0xCC9E2D51 & _MASK, 15) * 0x1B873593 & _MASK


def _turn(hash_: Tensor) -> Tensor:
    return _rotate(hash_, 13) * 5 + 0xE6546B64 & _MASK


def _rotate(word: Tensor, bits: int) -> Tensor:
    return (word << bits | word >> (32 - bits)) & _MASK


def _shift_right(word: Tensor, bits: int) -> Tensor:
    """Of an int32 tensor, zeros coming in from the left."""
    return (word >> bits).bitwise_and_((1 << (32 - bits)) - 1)


def _int32(word: Tensor) -> Tensor:
    """The same 32 bits."""
    return torch.where(word >= 1 << 31, word - (1 << 32), word).to(torch.int32)


def _signed(constant: int) -> int:
    return constant - (1 << 32) if constant >= 1 << 31 else constant


class MurmurOperator:
    """``torch.ops.sgl_kernel.murmur_hash32_cpu``, which SGLang calls by its ``default`` overload."""

    default = staticmethod(murmur_hash32)
