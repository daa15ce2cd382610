"""The seed of each sample: what it depends on, and nothing else."""

from __future__ import annotations

from hashlib import blake2b

_BITS = 63


def sampling_seed(*parts: int | str) -> int:
    """A seed in [0, 2^63) for the sample that these parts name, e.g. run seed, step, group and index.

    Equal parts give equal seeds on every machine; it is a hash, so neighbours are unrelated.
    """
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) >> (64 - _BITS)
