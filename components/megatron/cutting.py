"""Who computes which samples together: pure arithmetic on lengths, the same answer on every rank.

A pack is the samples of one row (they share its prompt), a run the packs of one micro-batch, a share what one
data-parallel rank gets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slime_launch.interfaces import RemoteMedia
from slime_launch.types import Sample, digest

Pack = list[int]
"""Numbers of samples that share a row."""
Run = list[Pack]

BALANCED = 1.05
"""The heaviest share over the mean that needs no further cut."""


@dataclass(frozen=True)
class Bounds:
    """What a micro-batch may hold.

    samples: at most so many, where ``tokens`` is None; else at most so many tokens, padding counted: rows x the longest
    row. A row that is longer by itself is a micro-batch by itself. share: samples of one prompt may share a row.
    multiple: every rank has a multiple of so many micro-batches. hidden: the decoder's width.
    """

    samples: int
    tokens: int | None = None
    share: bool = True
    multiple: int = 1
    hidden: int = 1

    def fits(self, rows: int, samples: int, longest: int) -> bool:
        """Whether rows of these samples may be one micro-batch."""
        return rows * longest <= self.tokens if self.tokens else samples <= self.samples

    def cost(self, length: int) -> int:
        """What a row costs, up to a factor: 72 B S L H^2 (1 + S / 6H) of Narayanan et al. 2021 (arXiv:2104.04473)."""
        return length * (6 * self.hidden + length)


def cut_up(samples: Sequence[Sample], parts: int, bounds: Bounds) -> list[list[Run]]:
    """The runs of each of ``parts`` ranks; all ranks have as many, an empty one where a rank has too few samples."""
    shares = deal(make_packs(samples, bounds), samples, parts, bounds)
    runs = [list(fill(share, samples, bounds)) for share in shares]
    count = max(map(len, runs))
    count += -count % bounds.multiple
    return [cut_to(some, count) for some in runs]


def make_packs(samples: Sequence[Sample], bounds: Bounds) -> list[Pack]:
    """The samples by shared prompt, as many in a row as a micro-batch may hold.

    Samples stay apart where one row would cost more than rows of their own: attention grows with its length squared.
    """
    by_prompt: dict[Any, Pack] = {}
    known: dict[int, bytes] = {}
    for number, sample in enumerate(samples):
        key: Any = number
        if bounds.share:
            key = (tuple(sample.prompt_ids), media_key(sample.media, sorted(sample.media), known))
        by_prompt.setdefault(key, []).append(number)
    packs: list[Pack] = []
    for shared in by_prompt.values():
        for pack in _rows(shared, samples, bounds):
            alone = sum(bounds.cost(row_length(samples, [number])) for number in pack)
            packs += [pack] if bounds.cost(row_length(samples, pack)) <= alone else [[number] for number in pack]
    return packs


def _rows(shared: Pack, samples: Sequence[Sample], bounds: Bounds) -> Iterator[Pack]:
    row: Pack = []
    for number in shared:
        if row and not bounds.fits(1, len(row) + 1, row_length(samples, [*row, number])):
            yield row
            row = []
        row.append(number)
    yield row


def deal(packs: Sequence[Pack], samples: Sequence[Sample], parts: int, bounds: Bounds) -> list[list[Pack]]:
    """Packs to ranks by longest processing time first (Graham 1969), so that all have about the same to compute.

    While a rank has none, or the heaviest share is too heavy, its costliest pack is halved: the prompt is then computed
    twice. There must be as many samples as ranks.
    """
    packs = list(packs)

    def cost(pack: Pack) -> int:
        return bounds.cost(row_length(samples, pack))

    best = _longest_first(packs, cost, parts)
    for _ in range(len(samples)):
        loads = [sum(map(cost, share)) for share in best]
        if all(loads) and max(loads) * parts <= BALANCED * sum(loads):
            break
        source = best[loads.index(max(loads))] if all(loads) else packs
        whole = max((pack for pack in source if len(pack) > 1), key=cost, default=None)
        if whole is None:
            break
        place, half = packs.index(whole), len(whole) // 2
        packs[place : place + 1] = [whole[:half], whole[half:]]
        fresh = _longest_first(packs, cost, parts)
        if all(loads) and max(sum(map(cost, share)) for share in fresh) >= max(loads):
            break
        best = fresh
    return best


def _longest_first(packs: Sequence[Pack], cost: Callable[[Pack], int], parts: int) -> list[list[Pack]]:
    shares: list[list[Pack]] = [[] for _ in range(parts)]
    loads = [(0, part) for part in range(parts)]
    heapify(loads)
    for pack in sorted(packs, key=cost, reverse=True):
        load, part = loads[0]
        shares[part].append(pack)
        heapreplace(loads, (load + cost(pack), part))
    return shares


def fill(packs: Sequence[Pack], samples: Sequence[Sample], bounds: Bounds) -> Iterator[Run]:
    """Rows of similar length together, as few runs as the bounds allow."""
    run: Run = []
    for pack in sorted(packs, key=lambda pack: row_length(samples, pack)):
        held = sum(map(len, run)) + len(pack)
        if run and not bounds.fits(len(run) + 1, held, row_length(samples, pack)):
            yield run
            run = []
        run.append(pack)
    yield run


def cut_to(runs: Sequence[Run], count: int) -> list[Run]:
    """As many runs: the largest are halved, by rows or, of a lone row, by samples; then empty ones follow."""
    parts = list(runs)
    while len(parts) < count:
        largest = max(parts, key=lambda run: sum(map(len, run)))
        if sum(map(len, largest)) < 2:
            return [*parts, *([] for _ in range(count - len(parts)))]
        pieces = largest if len(largest) > 1 else [[number] for number in largest[0]]
        half = len(pieces) // 2
        halves = [pieces[:half], pieces[half:]]
        if len(largest) == 1:
            halves = [[[number for pack in piece for number in pack]] for piece in halves]
        place = parts.index(largest)
        parts[place : place + 1] = halves
    return parts


def row_length(samples: Sequence[Sample], pack: Pack) -> int:
    """Tokens of a row: the prompt once, every response."""
    return len(samples[pack[0]].prompt_ids) + sum(len(samples[number].response_ids) for number in pack)


def media_key(
    media: Mapping[str, NDArray[np.generic]], names: Sequence[str], known: dict[int, bytes]
) -> tuple[bytes, ...]:
    """Equal for the same media. ``known``: digests of arrays by ``id``, so that one is taken once."""
    if isinstance(media, RemoteMedia):
        return tuple(map(media.digest, names))
    arrays = [media[name] for name in names]
    for array in arrays:
        if id(array) not in known:
            known[id(array)] = digest(array)
    return tuple(known[id(array)] for array in arrays)
