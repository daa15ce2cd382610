"""Samples -> padded micro-batches.

A row holds one prompt and the responses of the samples that share it: the prompt is computed once, each response goes
on from its end and sees no other. N samples, B rows, S tokens of a row, Q of them with this rank (all of them without
context parallelism), R response tokens of the longest response.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.megatron.cutting import Bounds, Pack, cut_up, media_key
from components.megatron.media import check_places, placed, row_positions
from components.models.base import Encoder, Family, HFConfig, Media
from components.models.context import Context
from slime_launch.errors import ComponentError
from slime_launch.types import UNSAMPLED, Sample

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class MicroBatch:
    """What one forward pass takes and what its loss needs.

    inputs: keywords of the model's forward: input_ids [B, Q], position_ids [3, B, S], attention_mask (bool
        [B, 1, Q, S], true where a token must not look; None: causal), media where there are any.
    slots_NR: flat index into [B, Q] of the logits that predict each response token. targets_NR: those tokens, 0 where
        there are none. mask_NR: 1.0 on tokens that count. here_NR: 1.0 on those of them whose logits this rank has.
        fresh_NR: 1.0 on those of them that the newest weights sampled.
        engine_NR: the engine's logprobs. advantages_N: one a sample.
    old_NR: the trainer's logprobs before the first update, None until known and on stages without logits.
    """

    inputs: dict[str, Any]
    slots_NR: Tensor
    targets_NR: Tensor
    mask_NR: Tensor
    here_NR: Tensor
    fresh_NR: Tensor
    engine_NR: Tensor
    advantages_N: Tensor
    old_NR: Tensor | None = None


@dataclass(frozen=True)
class Batcher:
    """Cuts samples into micro-batches within ``bounds`` for one model.

    Where samples share a row, the model must take rotary positions from the batch. media: build the towers' inputs,
    which the first pipeline stage alone reads: pixels of ``slime_launch.interfaces.RemoteMedia`` come to the ranks that
    compute their samples there, and to no other. length_multiple: rows are padded to one of it, for ranks that share
    the sequence. context: this rank's part of every row.
    """

    family: Family
    hf: HFConfig
    encoders: Mapping[str, Encoder]
    bounds: Bounds
    device: str
    media: bool = True
    length_multiple: int = 1
    context: Context = field(default_factory=Context)

    def cut(
        self, samples: Sequence[Sample], advantages_N: Tensor, part: int, parts: int, newest: int | None = None
    ) -> list[MicroBatch]:
        """The micro-batches of data-parallel rank ``part`` of ``parts``; as many on every rank.

        A rank with too few samples repeats its smallest micro-batch with nothing in it that counts.
        newest: the version whose tokens are compared with the engine's logprobs; None: the newest of these samples.
        Raises ComponentError for fewer samples than ranks and for a sample whose fields do not fit together.
        """
        if len(samples) < parts:
            raise ComponentError(
                f"trainer: {len(samples)} samples an optimizer step for {parts} data-parallel ranks; raise "
                "rollout.num_prompts or lower trainer.num_minibatches"
            )
        for sample in samples:
            check_sample(sample, self.encoders)
            check_places(sample, self.encoders, self.hf)
        newest = newest_version(samples) if newest is None else newest
        runs = cut_up(samples, parts, self.bounds)[part]
        batches = [self._micro_batch(samples, advantages_N, run, newest) for run in runs if run]
        smallest = min(batches, key=lambda batch: batch.inputs["input_ids"].numel())
        nothing = smallest.mask_NR * 0
        blank = replace(smallest, mask_NR=nothing, here_NR=nothing, fresh_NR=nothing)
        return batches + [blank] * (len(runs) - len(batches))

    def _micro_batch(
        self, samples: Sequence[Sample], advantages_N: Tensor, packs: Sequence[Pack], newest: int
    ) -> MicroBatch:
        import torch

        rows = [[samples[i] for i in pack] for pack in packs]
        mine = list(chain.from_iterable(rows))
        width = max(1, max(len(sample.response_ids) for sample in mine))
        length = -(-max(map(_row_length, rows)) // self.length_multiple) * self.length_multiple

        def padded(values: Sequence[Any], dtype: Any) -> Tensor:
            return torch.from_numpy(_pad(values, width, dtype)).to(self.device)

        slots = [self.context.local(places, length) for row in rows for places in _predictors(row)]
        starts = [number * (length // self.context.size) for number, row in enumerate(rows) for _ in row]
        return MicroBatch(
            inputs=self._inputs(rows, length),
            slots_NR=padded([places.clip(0) + start for places, start in zip(slots, starts, strict=True)], np.int64),
            targets_NR=padded([sample.response_ids for sample in mine], np.int64),
            mask_NR=padded([sample.loss_mask for sample in mine], np.float32),
            here_NR=padded(
                [(places >= 0) * each.loss_mask for places, each in zip(slots, mine, strict=True)], np.float32
            ),
            fresh_NR=padded([_fresh(sample, newest) for sample in mine], np.float32),
            engine_NR=padded([sample.logprobs for sample in mine], np.float32),
            advantages_N=advantages_N[list(chain.from_iterable(packs))].to(self.device),
        )

    def _inputs(self, rows: Sequence[Sequence[Sample]], length: int) -> dict[str, Any]:
        import torch

        ids = [[*row[0].prompt_ids, *chain.from_iterable(sample.response_ids for sample in row)] for row in rows]
        positions = np.stack([self._positions(row, length) for row in rows], axis=1)
        inputs: dict[str, Any] = {
            "input_ids": self.context.mine(torch.from_numpy(_pad(ids, length, np.int64)), 1).to(self.device),
            "position_ids": torch.from_numpy(positions).to(self.device),
            "attention_mask": self._mask(rows, length),
        }
        encoders = self.encoders if self.media else {}
        media = {name: self._media(encoder, rows, length) for name, encoder in encoders.items()}
        present = {name: part for name, part in media.items() if part}
        return inputs | ({"media": present} if present else {})

    def _positions(self, row: Sequence[Sample], length: int) -> NDArray[np.int64]:
        """Positions [3, S] of one row."""
        joined = row_positions(self.family, self.hf, row)
        return np.pad(joined, ((0, 0), (0, length - joined.shape[1])))

    def _mask(self, rows: Sequence[Sequence[Sample]], length: int) -> Tensor | None:
        import torch

        if max(map(len, rows)) == 1:
            return None
        # 0 is the prompt, k the k-th response of the row.
        owners = [
            np.repeat(np.arange(len(row) + 1), [len(row[0].prompt_ids), *(len(sample.response_ids) for sample in row)])
            for row in rows
        ]
        owner_BS = torch.from_numpy(_pad(owners, length, np.int64)).to(self.device)
        place_S = torch.arange(length, device=self.device)
        owner_BQ, place_Q = self.context.mine(owner_BS, 1), self.context.mine(place_S, 0)
        looked_at, looking = owner_BS.unsqueeze(1), owner_BQ.unsqueeze(2)
        causal_QS = place_S <= place_Q.unsqueeze(1)
        return ~(causal_QS & ((looked_at == 0) | (looked_at == looking))).unsqueeze(1)

    def _media(self, encoder: Encoder, rows: Sequence[Sequence[Sample]], length: int) -> dict[str, Any]:
        """One encoder's inputs, every distinct set of media once, and where its features go; empty without any here."""
        import torch

        distinct: dict[tuple[bytes, ...], tuple[int, Media]] = {}
        known: dict[int, bytes] = {}
        slots, features, total = [], [], 0
        for number, media, places in placed(rows, self.hf[encoder.token]):
            if encoder.media[0] not in media:
                continue
            first, _ = distinct.setdefault(media_key(media, encoder.media, known), (total, media))
            total = max(total, first + len(places))
            here = self.context.local(places, length)
            slots.append(here[here >= 0] + number * (length // self.context.size))
            features.append(np.arange(first, first + len(places))[here >= 0])
        if not any(map(len, slots)):
            return {}
        unique = [media for _, media in distinct.values()]
        return {
            "inputs": {
                name: torch.from_numpy(np.concatenate([media[name] for media in unique])).to(self.device)
                for name in encoder.media
            },
            "features": total,
            "slots": torch.from_numpy(np.concatenate(slots)).to(self.device),
            "rows": torch.from_numpy(np.concatenate(features)).to(self.device),
        }


def _row_length(row: Sequence[Sample]) -> int:
    return len(row[0].prompt_ids) + sum(len(sample.response_ids) for sample in row)


def _predictors(row: Sequence[Sample]) -> Iterator[NDArray[np.int64]]:
    """For each sample of a row, the places whose logits predict its response: the prompt's end, then its own tokens."""
    start = len(row[0].prompt_ids)
    for sample in row:
        places = np.arange(start - 1, start - 1 + len(sample.response_ids))
        places[:1] = len(row[0].prompt_ids) - 1
        yield places
        start += len(sample.response_ids)


def check_sample(sample: Sample, encoders: Mapping[str, Encoder]) -> None:
    """Raises ComponentError, naming the sample, unless its per-token fields agree and its media have an encoder."""
    who = f"sample {sample.index} of group {sample.group}"
    lengths = {
        name: len(getattr(sample, name)) for name in ("response_ids", "logprobs", "loss_mask", "weight_versions")
    }
    if len(set(lengths.values())) > 1:
        raise ComponentError(f"{who}: lengths differ: {lengths}")
    if not sample.prompt_ids:
        raise ComponentError(f"{who}: prompt_ids is empty; the first response token has nothing to be predicted from")
    if not np.isfinite(sample.logprobs).all():
        raise ComponentError(f"{who}: the engine's logprobs are not all finite")
    known = set(chain.from_iterable(encoder.media for encoder in encoders.values()))
    if strange := sorted(set(sample.media).union(*(image.media for image in sample.images)) - known):
        raise ComponentError(f"{who}: media {strange} are taken by no encoder of this model; it takes {sorted(known)}")


def newest_version(samples: Sequence[Sample]) -> int:
    """The newest weights behind any token that counts."""
    counted = (
        version for s in samples for version, counts in zip(s.weight_versions, s.loss_mask, strict=False) if counts
    )
    return max(counted, default=UNSAMPLED)


def _fresh(sample: Sample, newest: int) -> list[int]:
    return [
        int(counts and version == newest)
        for version, counts in zip(sample.weight_versions, sample.loss_mask, strict=True)
    ]


def minibatches(count: int, parts: int) -> Iterator[range]:
    """Runs of the sample numbers 0..count, as even as they can be, one an optimizer step."""
    if count < parts:
        raise ComponentError(f"trainer.num_minibatches={parts}: the rollout has {count} samples; lower it")
    for part in range(parts):
        yield range(count * part // parts, count * (part + 1) // parts)


def _pad(rows: Sequence[Any], width: int, dtype: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """Rows of unequal length as one array [rows, width], zero on the right."""
    array = np.zeros((len(rows), width), dtype=dtype)
    for target, row in zip(array, rows, strict=True):
        target[: len(row)] = row
    return array
