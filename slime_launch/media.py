"""A rollout batch on its way to the trainer: large media stay in Ray's object store until somebody reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slime_launch.types import Prompt, Sample, digest

LARGE = 2**16
"""Bytes from which on an array has an object of its own; smaller ones, like grids, travel with their sample."""


@dataclass(frozen=True)
class Stored:
    """An array in the object store, and the digest of what is in it."""

    ref: Any
    digest: bytes


class Parcel(Mapping[str, NDArray[np.generic]]):
    """Media by name; reading a large array fetches it. A ``slime_launch.interfaces.RemoteMedia``.

    Ray brings an object to a node when somebody there first reads it, and every reader on that node maps the one copy,
    read-only. So a pipeline's later stages and other data-parallel ranks cost nothing on nodes where no rank reads it.
    """

    def __init__(self, entries: Mapping[str, NDArray[np.generic] | Stored]) -> None:
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        import ray

        entry = self._entries[name]
        if not isinstance(entry, Stored):
            return entry
        array: NDArray[np.generic] = ray.get(entry.ref)
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._entries  # Mapping's own would read it

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def digest(self, name: str) -> bytes:
        """Equal for arrays of equal content; reads nothing large."""
        entry = self._entries[name]
        return entry.digest if isinstance(entry, Stored) else digest(entry)


def packed(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with ``Parcel`` media, and with prompts without image files, which no trainer reads.

    Every distinct array is stored once, whoever shares it, and goes with the last sample that refers to it.
    """
    packer = _Packer()
    return [
        replace(
            sample,
            media=packer.media(sample.media),
            images=[replace(image, file=b"", media=packer.media(image.media)) for image in sample.images],
            prompt=packer.prompt(sample.prompt),
        )
        for sample in samples
    ]


class _Packer:
    """What was packed already; samples of one prompt share their media and their prompt. The samples outlive it."""

    def __init__(self) -> None:
        self._parcels: dict[int, Parcel] = {}
        self._prompts: dict[int, Prompt] = {}
        self._entries: dict[int, NDArray[np.generic] | Stored] = {}
        self._stored: dict[bytes, Stored] = {}

    def media(self, media: Mapping[str, NDArray[np.generic]]) -> Mapping[str, NDArray[np.generic]]:
        if not media:
            return {}
        if id(media) not in self._parcels:
            self._parcels[id(media)] = Parcel({name: self._entry(array) for name, array in media.items()})
        return self._parcels[id(media)]

    def prompt(self, prompt: Prompt) -> Prompt:
        if not prompt.images:
            return prompt
        return self._prompts.setdefault(id(prompt), replace(prompt, images=()))

    def _entry(self, array: NDArray[np.generic]) -> NDArray[np.generic] | Stored:
        if id(array) not in self._entries:
            self._entries[id(array)] = array if array.nbytes < LARGE else self._store(array)
        return self._entries[id(array)]

    def _store(self, array: NDArray[np.generic]) -> Stored:
        import ray

        key = digest(array)
        if key not in self._stored:
            self._stored[key] = Stored(ray.put(array), key)
        return self._stored[key]
