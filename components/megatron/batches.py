"""Samples -> padded micro-batches. B sequences, S tokens, R response tokens of the longest response."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from components.models.base import Encoder, Family, HFConfig
from slime_launch.errors import ComponentError
from slime_launch.types import Sample

if TYPE_CHECKING:
    from torch import Tensor



@dataclass(slots=True)
class MicroBatch:
    """What one forward pass takes and what its loss needs.

    inputs: keywords of the model's forward: input_ids [B, S], position_ids ([3, B, S] where rotary positions are
        multimodal), attention_mask (None: causal), media where there are any.
    rows_BR: which position's logits predict each response token. targets_BR: those tokens, 0 where there are none.
    mask_BR: 1.0 on tokens that count. engine_BR: the engine's logprobs. advantages_B: one a sequence.
    old_BR: the trainer's logprobs before the first update, None until known and on stages without logits.
    """

    inputs: dict[str, Any]
    rows_BR: Tensor
    targets_BR: Tensor
    mask_BR: Tensor
    engine_BR: Tensor
    advantages_B: Tensor
    old_BR: Tensor | None = None


@dataclass(frozen=True)
class Batcher:
    """Cuts samples into micro-batches of at most ``size`` sequences for one model."""

    family: Family
    hf: HFConfig
    encoders: Mapping[str, Encoder]
    size: int
    device: str

    def cut(self, samples: Sequence[Sample], advantages_N: Tensor, part: int, parts: int) -> list[MicroBatch]:
        """The micro-batches of data-parallel rank ``part`` of ``parts``: samples by length, dealt round.

        Raises ComponentError for fewer samples than ranks and for a sample whose fields do not fit together.
        """
        if len(samples) < parts:
            raise ComponentError(
                f"trainer: {len(samples)} samples an optimizer step for {parts} data-parallel ranks; raise "
                "rollout.num_prompts or lower trainer.num_minibatches"
            )
        for sample in samples:
            check_sample(sample, self.encoders)
        order = sorted(range(len(samples)), key=lambda i: len(samples[i].prompt_ids) + len(samples[i].response_ids))
        mine = order[part::parts]
        chosen = [mine[start : start + self.size] for start in range(0, len(mine), self.size)]
        return [self._micro_batch([samples[i] for i in some], advantages_N[some]) for some in chosen]

    def _micro_batch(self, samples: Sequence[Sample], advantages_B: Tensor) -> MicroBatch:
        import torch

        width = max(1, max(len(sample.response_ids) for sample in samples))

        def padded(rows: Sequence[Any], dtype: Any) -> Tensor:
            return torch.from_numpy(_pad(rows, width, dtype)).to(self.device)

        prompts = [len(sample.prompt_ids) for sample in samples]
        rows = [
            np.arange(first - 1, first - 1 + len(sample.response_ids))
            for first, sample in zip(prompts, samples, strict=True)
        ]
        return MicroBatch(
            inputs=self._inputs(samples),
            rows_BR=padded(rows, np.int64),
            targets_BR=padded([sample.response_ids for sample in samples], np.int64),
            mask_BR=padded([sample.loss_mask for sample in samples], np.float32),
            engine_BR=padded([sample.logprobs for sample in samples], np.float32),
            advantages_B=advantages_B.to(self.device),
        )

    def _inputs(self, samples: Sequence[Sample]) -> dict[str, Any]:
        import torch

        ids = [[*sample.prompt_ids, *sample.response_ids] for sample in samples]
        length = max(map(len, ids))
        inputs: dict[str, Any] = {
            "input_ids": torch.from_numpy(_pad(ids, length, np.int64)).to(self.device),
            "position_ids": self._positions(ids, samples, length),
            "attention_mask": None,
        }
        media = {
            name: found for name, encoder in self.encoders.items() if (found := self._media(encoder, samples, length))
        }
        return inputs | ({"media": media} if media else {})

    def _positions(self, ids: Sequence[Sequence[int]], samples: Sequence[Sample], length: int) -> Tensor:
        import torch

        if self.family.positions is None:
            return torch.arange(length, device=self.device).expand(len(ids), -1)
        positions_3BS = np.zeros((3, len(ids), length), dtype=np.int64)
        for row, (some, sample) in enumerate(zip(ids, samples, strict=True)):
            positions_3BS[:, row, : len(some)] = self.family.positions(self.hf, some, sample.media)
        return torch.from_numpy(positions_3BS).to(self.device)

    def _media(self, encoder: Encoder, samples: Sequence[Sample], length: int) -> dict[str, Any]:
        """One encoder's inputs, every distinct set of media once, and where its features go; empty without media."""
        import torch

        distinct: dict[tuple[bytes, ...], tuple[int, Sample]] = {}
        slots, rows, total = [], [], 0
        for row, sample in enumerate(samples):
            if encoder.media[0] not in sample.media:
                continue
            places = np.flatnonzero(np.asarray(sample.prompt_ids) == self.hf[encoder.token])
            key = tuple(np.ascontiguousarray(sample.media[name]).tobytes() for name in encoder.media)
            first, _ = distinct.setdefault(key, (total, sample))
            total = max(total, first + len(places))
            slots.append(places + row * length)
            rows.append(np.arange(first, first + len(places)))
        if not slots:
            return {}
        unique = [sample for _, sample in distinct.values()]
        return {
            "inputs": {
                name: torch.from_numpy(np.concatenate([sample.media[name] for sample in unique])).to(self.device)
                for name in encoder.media
            },
            "slots": torch.from_numpy(np.concatenate(slots)).to(self.device),
            "rows": torch.from_numpy(np.concatenate(rows)).to(self.device),
        }


def check_sample(sample: Sample, encoders: Mapping[str, Encoder]) -> None:
    """Raises ComponentError, naming the sample, unless its per-token fields agree and its media have an encoder."""
    who = f"sample {sample.index} of group {sample.group}"
    lengths = {name: len(getattr(sample, name)) for name in ("response_ids", "logprobs", "loss_mask")}
    if len(set(lengths.values())) > 1:
        raise ComponentError(f"{who}: lengths differ: {lengths}")
    if not sample.prompt_ids:
        raise ComponentError(f"{who}: prompt_ids is empty; the first response token has nothing to be predicted from")
    if not np.isfinite(sample.logprobs).all():
        raise ComponentError(f"{who}: the engine's logprobs are not all finite")
    known = set(chain.from_iterable(encoder.media for encoder in encoders.values()))
    if strange := sorted(set(sample.media) - known):
        raise ComponentError(f"{who}: media {strange} are taken by no encoder of this model; it takes {sorted(known)}")


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
