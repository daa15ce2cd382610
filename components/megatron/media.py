"""Images of a row's samples: the prompt's, which all of them share, and those of each response, which are its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from components.models.base import Encoder, Family, HFConfig, Media
from slime_launch.errors import ComponentError
from slime_launch.types import Sample


def placed(rows: Sequence[Sequence[Sample]], token: int) -> Iterator[tuple[int, Media, NDArray[np.int64]]]:
    """(row, media, where its placeholders are in that row): of the row's prompt, ``token`` there, and of each
    response's images."""
    for number, row in enumerate(rows):
        yield number, row[0].media, np.flatnonzero(np.asarray(row[0].prompt_ids) == token)
        start = len(row[0].prompt_ids)
        for sample in row:
            for image in sample.images:
                yield number, image.media, np.arange(image.tokens) + start + image.start
            start += len(sample.response_ids)


def row_positions(family: Family, hf: HFConfig, row: Sequence[Sample]) -> NDArray[np.int64]:
    """Positions [3, S] of one row: every response's go on from the prompt's, past its own images."""
    without = [sample for sample in row if not sample.images]
    longest = max(without, key=lambda sample: len(sample.response_ids), default=None)
    common = None if longest is None else _positions(family, hf, longest)
    wholes = [common if common is not None and not one.images else _positions(family, hf, one) for one in row]
    prompt = len(row[0].prompt_ids)
    ends = [whole[:, prompt : prompt + len(sample.response_ids)] for whole, sample in zip(wholes, row, strict=True)]
    return np.concatenate([wholes[0][:, :prompt], *ends], axis=1)


def check_places(sample: Sample, encoders: Mapping[str, Encoder], hf: HFConfig) -> None:
    """Raises ComponentError, naming the sample, where an image of its response has no placeholders in its place."""
    done = 0
    for image in sample.images:
        end = image.start + image.tokens
        tokens = {hf[encoder.token] for encoder in encoders.values() if encoder.media[0] in image.media}
        run = sample.response_ids[image.start : end]
        if image.start < done or len(run) != image.tokens or set(run) != tokens:
            raise ComponentError(
                f"sample {sample.index} of group {sample.group}: an image of its response has response_ids "
                f"{image.start} to {end}, which are not placeholders (token {sorted(tokens)}) of it alone"
            )
        done = end


def _positions(family: Family, hf: HFConfig, sample: Sample) -> NDArray[np.int64]:
    media = _Joined([sample.media, *(image.media for image in sample.images)]) if sample.images else sample.media
    return family.positions(hf, [*sample.prompt_ids, *sample.response_ids], media)


class _Joined(Mapping[str, NDArray[np.generic]]):
    """Media of several processor calls as one; an array is joined when it is asked for, pixels hardly ever."""

    def __init__(self, parts: Sequence[Media]) -> None:
        self._parts = parts

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        arrays = [part[name] for part in self._parts if name in part]
        if not arrays:
            raise KeyError(name)
        return np.concatenate(arrays)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name for part in self._parts for name in part))

    def __len__(self) -> int:
        return len(list(iter(self)))
