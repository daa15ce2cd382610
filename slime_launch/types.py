"""What travels between actors: prompts in, samples out. Plain data, no tensors of any framework but numpy's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slime_launch.errors import ComponentError

Metrics = dict[str, float]


UNSAMPLED = -1
"""The weight version of a token that no engine sampled, e.g. a tool's answer."""


class Status(StrEnum):
    """How a generation ended; an aborted one may go on later."""

    PENDING = "pending"
    COMPLETED = "completed"
    TRUNCATED = "truncated"
    ABORTED = "aborted"


def digest(array: NDArray[np.generic]) -> bytes:
    """Equal for arrays of equal shape, type and content."""
    shape = repr((array.shape, array.dtype.str)).encode()
    return blake2b(np.ascontiguousarray(array).data, digest_size=16, key=shape[:64]).digest()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server listens.

    key: its bearer token, empty when it takes none. model: the served model's name.
    admin_key: of an engine, the token of its control endpoints; empty where it has none of its own.
    bootstrap_port: of a prefill engine, where decode engines ask for KV caches.
    dp_size: data-parallel ranks inside it; a request may name the one that takes it.
    log: its log file, empty where someone else runs it.
    """

    url: str
    key: str = ""
    model: str = ""
    bootstrap_port: int | None = None
    dp_size: int = 1
    admin_key: str = ""
    log: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One task.

    messages: chat messages as the checkpoint's chat template takes them, e.g.
        ``[{"role": "user", "content": "2+3="}]``; content may be a list of parts (``{"type": "image"}``,
        ``{"type": "text", "text": ...}``), one image part an image.
    label: what the rewards compare the answer with.
    images: encoded files (PNG), in the order of the image parts.
    completion: a reference answer in the wanted format, for supervised warm starts; empty when there is none.
    turns: the reference's assistant turns before that answer, where a task takes several.
    source: the data source's name, for per-source metrics and reward routing.
    tools: JSON schemas of functions, as the chat template takes them.
    sampling: SGLang sampling parameters of this prompt, over the run's.
    """

    messages: list[dict[str, Any]]
    label: str
    images: tuple[bytes, ...] = ()
    completion: str = ""
    turns: tuple[str, ...] = ()
    source: str = "default"
    metadata: dict[str, Any] = field(default_factory=dict)
    tools: tuple[dict[str, Any], ...] = ()
    sampling: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TurnImage:
    """An image that came with a later turn.

    file: as the engine gets it, a PNG. start: where its placeholders begin, among the turn's ids or, once it is a
    sample's, in ``response_ids``. tokens: how many they are. media: the processor's outputs for it alone, as in
    ``Sample.media``.
    """

    file: bytes
    start: int
    tokens: int
    media: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Turn:
    """What goes behind a sample's tokens when somebody answers it: ids, media placeholders expanded, and images."""

    ids: list[int]
    images: tuple[TurnImage, ...] = ()

    def __len__(self) -> int:
        """Tokens of it."""
        return len(self.ids)


@dataclass(slots=True)
class Sample:
    """One sequence to score and train on: a prompt and what followed it.

    group, index: which rollout it belongs to, the ``index``-th of a prompt; group numbers are unique in a run.
        Samples with both in common are parts of one rollout (say, its turns) and count once in their group.
    part: its number among those.
    prompt_ids: ids with media placeholders expanded, as trainer and engine both count them; length P.
    response_ids, logprobs, loss_mask, weight_versions: length R each. logprobs are the engine's, natural log, at
        rollout temperature; 0.0 where no engine sampled. loss_mask: 1 on tokens that train. weight_versions: the step
        whose weights the engine served when it sampled the token, UNSAMPLED where none did.
    media: processor outputs for the prompt that the trainer's model takes beside the ids, e.g. pixel_values
        [patches, features]; as a trainer gets them, ``slime_launch.interfaces.RemoteMedia``.
    images: those of later turns, in the order of their placeholders in response_ids.
    reward: the scalar that advantages come from. reward_parts: by name. raw_reward: what to report in its place.
    dropped: why it is not to be trained on; empty when it is.
    metadata: what a user's generate function or reward keeps with it.
    """

    group: int
    index: int
    prompt: Prompt
    prompt_text: str
    prompt_ids: list[int]
    response: str = ""
    response_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    loss_mask: list[int] = field(default_factory=list)
    weight_versions: list[int] = field(default_factory=list)
    status: Status = Status.PENDING
    part: int = 0
    media: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    images: list[TurnImage] = field(default_factory=list)
    reward: float = 0.0
    reward_parts: dict[str, float] = field(default_factory=dict)
    raw_reward: float | None = None
    dropped: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def weight_version(self) -> int:
        """The oldest version that sampled a token of it; UNSAMPLED when none did."""
        return min((version for version in self.weight_versions if version != UNSAMPLED), default=UNSAMPLED)

    def add_sampled(self, ids: Sequence[int], logprobs: Sequence[float], version: int) -> None:
        """Append what an engine sampled; it trains.

        Raises ComponentError when the lengths differ.
        """
        if len(ids) != len(logprobs):
            raise ComponentError(
                f"sample {self.index} of group {self.group}: the engine gave {len(ids)} tokens and "
                f"{len(logprobs)} logprobs"
            )
        self._add(ids, logprobs, 1, version)

    def add_given(self, ids: Sequence[int]) -> None:
        """Append what the model did not write, e.g. a tool's answer; it does not train."""
        self._add(ids, [0.0] * len(ids), 0, UNSAMPLED)

    def add_turn(self, turn: Turn) -> None:
        """Append what somebody answered, images included; it does not train."""
        behind = len(self.response_ids)
        self.images.extend(replace(image, start=behind + image.start) for image in turn.images)
        self.add_given(turn.ids)

    def _add(self, ids: Sequence[int], logprobs: Sequence[float], counts: int, version: int) -> None:
        self.response_ids.extend(ids)
        self.logprobs.extend(logprobs)
        self.loss_mask.extend([counts] * len(ids))
        self.weight_versions.extend([version] * len(ids))
