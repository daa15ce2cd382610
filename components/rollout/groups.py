"""The rollouts of one prompt, on their way from the data source to the trainer; plain values for a checkpoint."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from components.rollout.prompts import Rendered
from slime_launch.errors import ComponentError
from slime_launch.types import UNSAMPLED, Prompt, Sample, Status, TurnImage

ENDED = (Status.COMPLETED, Status.TRUNCATED)
_NO_PROMPT = Prompt([], "")


@dataclass(slots=True)
class Group:
    """The rollouts of one prompt.

    number: unique in a run. rollouts: what there is of each by its index: the samples of one that came to an end, or
    the one sample of a rollout that was cut short and can go on. Indices without an entry have not begun.
    """

    number: int
    rendered: Rendered
    rollouts: dict[int, list[Sample]] = field(default_factory=dict)

    @property
    def samples(self) -> list[Sample]:
        """Everything there is, by index and part."""
        return list(chain.from_iterable(samples for _, samples in sorted(self.rollouts.items())))

    def whole(self, size: int) -> bool:
        """Whether ``size`` rollouts have come to an end."""
        return len(self.rollouts) == size and all(sample.status in ENDED for sample in self.samples)

    def set_aside(self, keep: bool) -> None:
        """Leave what can go on, or has ended, for a later step, or nothing unless ``keep``.

        A rollout of several samples, one of which was cut short, cannot: a generate function begins with one.
        """
        self.rollouts = {index: samples for index, samples in self.rollouts.items() if keep and _can_go_on(samples)}

    def forget(self, oldest: int, size: int) -> int:
        """Drop rollouts with tokens of weights before version ``oldest`` and those beyond the ``size``-th, which a run
        of larger groups left; returns how many samples that were.
        """
        before = len(self.samples)
        self.rollouts = {
            index: samples
            for index, samples in self.rollouts.items()
            if index < size and not any(UNSAMPLED < sample.weight_version < oldest for sample in samples)
        }
        return before - len(self.samples)


def _can_go_on(samples: list[Sample]) -> bool:
    if all(sample.status in ENDED for sample in samples):
        return True
    return len(samples) == 1 and samples[0].status is Status.ABORTED and bool(samples[0].response_ids)


def to_plain(group: Group) -> dict[str, Any]:
    """A group as JSON values: bytes and arrays in base64, and media only where rendering does not give them again.

    Raises ComponentError for metadata that is no JSON.
    """
    try:
        prompt = _plain(group.rendered.prompt)
        samples = [_sample_to_plain(sample, group.rendered) for sample in group.samples]
    except (TypeError, ValueError) as error:
        raise ComponentError(
            f"group {group.number} (source {group.rendered.prompt.source}) cannot be saved: {error}; metadata must be "
            "plain JSON values where generations are kept over a checkpoint"
        ) from None
    return {"number": group.number, "prompt": prompt, "samples": samples}


def from_plain(state: dict[str, Any], render: Callable[[Prompt], Rendered]) -> Group:
    """What ``to_plain`` made plain."""
    rendered = render(msgspec.convert(state["prompt"], Prompt))
    group = Group(int(state["number"]), rendered)
    for plain in state["samples"]:
        sample = _sample_from_plain(plain, rendered)
        group.rollouts.setdefault(sample.index, []).append(sample)
    return group


def _sample_to_plain(sample: Sample, rendered: Rendered) -> dict[str, Any]:
    own_prompt = sample.prompt is not rendered.prompt
    plain: dict[str, Any] = _plain(
        replace(sample, media={}, images=[], prompt=sample.prompt if own_prompt else _NO_PROMPT)
    )
    plain["own_prompt"] = own_prompt
    plain["images"] = [
        _plain(replace(image, media={})) | {"media": _media_to_plain(image.media)} for image in sample.images
    ]
    if sample.media is not rendered.media:
        plain["media"] = _media_to_plain(sample.media)
    else:
        del plain["media"]
    return plain


def _sample_from_plain(plain: dict[str, Any], rendered: Rendered) -> Sample:
    own_prompt = plain.pop("own_prompt")
    media = plain.pop("media", None)
    later = [(image, _media(image.pop("media"))) for image in plain.pop("images", [])]
    sample = msgspec.convert(plain, Sample)
    sample.images = [replace(msgspec.convert(image, TurnImage), media=own) for image, own in later]
    sample.prompt = sample.prompt if own_prompt else rendered.prompt
    sample.media = rendered.media if media is None else _media(media)
    return sample


def _plain(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


def _media_to_plain(media: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    return {name: _array_to_plain(array) for name, array in media.items()}


def _media(plain: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: _array(array) for name, array in plain.items()}


def _array_to_plain(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": data}


def _array(plain: dict[str, Any]) -> np.ndarray[Any, Any]:
    flat = np.frombuffer(base64.b64decode(plain["data"]), np.dtype(plain["dtype"]))
    return flat.reshape(plain["shape"]).copy()
