"""What travels between actors: prompts in, samples out. Plain data, no tensors of any framework but numpy's."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Metrics = dict[str, float]


class Status(StrEnum):
    """How a generation ended."""

    COMPLETED = "completed"
    TRUNCATED = "truncated"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server listens.

    key: its bearer token, empty when it takes none. model: the served model's name.
    bootstrap_port: of a prefill engine, where decode engines ask for KV caches.
    """

    url: str
    key: str = ""
    model: str = ""
    bootstrap_port: int | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """One task.

    messages: chat messages as the checkpoint's chat template takes them, e.g.
        ``[{"role": "user", "content": "2+3="}]``; content may be a list of parts (``{"type": "image"}``,
        ``{"type": "text", "text": ...}``), one image part an image.
    label: what the rewards compare the answer with.
    images: encoded files (PNG), in the order of the image parts.
    completion: a reference answer in the wanted format, for supervised warm starts; empty when there is none.
    source: the data source's name, for per-source metrics and reward routing.
    """

    messages: list[dict[str, Any]]
    label: str
    images: tuple[bytes, ...] = ()
    completion: str = ""
    source: str = "default"
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Sample:
    """One generation for one prompt.

    prompt_ids: ids with media placeholders expanded, as trainer and engine both count them; length P.
    response_ids, logprobs, loss_mask: length R each; logprobs are the engine's, natural log, at rollout temperature.
    media: processor outputs the trainer's model takes beside the ids, e.g. pixel_values [patches, features].
    weight_version: the step whose weights the engine served while it generated.
    """

    group: int
    index: int
    prompt: Prompt
    prompt_text: str
    prompt_ids: list[int]
    response: str
    response_ids: list[int]
    logprobs: list[float]
    loss_mask: list[int]
    status: Status
    weight_version: int
    media: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    reward: float = 0.0
    reward_parts: dict[str, float] = field(default_factory=dict)
    raw_reward: float | None = None
