"""An engine's answer to one request, and what it must be like to be used."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from slime_launch.errors import ComponentError
from slime_launch.types import Status

_STATUS = {"stop": Status.COMPLETED, "length": Status.TRUNCATED, "abort": Status.ABORTED}


class BadAnswer(ComponentError):
    """An answer that does not hold together: nothing of it is used, and the request may be made again."""


class _Finish(msgspec.Struct):
    type: str


class _Span(msgspec.Struct):
    version: str
    start: int
    end: int


class _Meta(msgspec.Struct):
    """What is used of SGLang's ``meta_info``; whoever aborts a request leaves out much of it."""

    finish_reason: _Finish
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    output_token_logprobs: list[tuple[float, int, Any]] | None = None
    weight_version: str = ""
    weight_versions: list[_Span] | None = None
    sent: bool = True


@dataclass(frozen=True)
class Answer:
    """A whole answer.

    runs: (ids, natural logprobs, weight version) of the sampled tokens, several where the weights changed meanwhile.
    sent: whether an engine got the request.
    """

    status: Status
    runs: Sequence[tuple[list[int], list[float], int]] = field(default_factory=list)
    sent: bool = True


@dataclass(frozen=True)
class Asked:
    """What is known of a request before its answer comes.

    whose: of which sample. tokens: in the request, as the trainer counts them. images: whether it has any.
    vocabulary: the model's, in tokens; None where it is not known. prompt_text: shown where counts differ.
    """

    whose: str
    tokens: int
    images: bool
    vocabulary: int | None
    prompt_text: str

    def read(self, reply: Mapping[str, Any]) -> Answer:
        """Raises BadAnswer; ComponentError for what asking again cannot mend: an image that trainer and engine count
        differently, and weights that no trainer sent."""
        meta = self._meta(reply)
        ended = meta.finish_reason.type
        if ended not in _STATUS:
            raise BadAnswer(f"{self.whose}: the engine ended it with {reply['meta_info']['finish_reason']!r:.200}")
        if ended == "abort" and not meta.completion_tokens:
            return Answer(Status.ABORTED, sent=meta.sent)  # before the engine began: it counts no prompt tokens either
        self._check_counts(meta)
        pairs = meta.output_token_logprobs or []
        if len(pairs) != meta.completion_tokens or not pairs:
            raise BadAnswer(
                f"{self.whose}: the engine made {meta.completion_tokens} tokens and sent {len(pairs)} logprobs"
            )
        ids, logprobs = [pair[1] for pair in pairs], [pair[0] for pair in pairs]
        self._check_tokens(ids, logprobs)
        runs = [(ids[start:end], logprobs[start:end], at) for start, end, at in self._versions(meta, len(ids))]
        return Answer(_STATUS[ended], runs, meta.sent)

    def _meta(self, reply: Mapping[str, Any]) -> _Meta:
        try:
            return msgspec.convert(reply.get("meta_info"), _Meta)
        except msgspec.ValidationError as error:
            raise BadAnswer(f"{self.whose}: the engine's meta_info is broken: {error}") from None

    def _check_counts(self, meta: _Meta) -> None:
        # an abort out of the engine's queue, where a retracted request stands too, does not tell
        counted = meta.prompt_tokens
        if counted == self.tokens or (counted is None and meta.finish_reason.type == "abort"):
            return
        kind = ComponentError if self.images and counted is not None else BadAnswer
        raise kind(
            f"{self.whose}: the engine counts {counted} tokens before what it samples and the trainer {self.tokens}: "
            f"tokenizer or image processor differ; prompt {self.prompt_text!r:.200}"
        )

    def _check_tokens(self, ids: Sequence[int], logprobs: Sequence[float]) -> None:
        if not all(map(math.isfinite, logprobs)):
            raise BadAnswer(f"{self.whose}: the engine sent a logprob that is no number: {logprobs!r:.200}")
        low, high = min(ids), max(ids)
        if low < 0 or (self.vocabulary is not None and high >= self.vocabulary):
            raise BadAnswer(
                f"{self.whose}: the engine sampled token {low if low < 0 else high}, and the vocabulary has "
                f"{self.vocabulary}"
            )

    def _versions(self, meta: _Meta, count: int) -> Iterator[tuple[int, int, int]]:
        """(start, end, weight version) of each run of sampled tokens."""
        at = 0
        for span in meta.weight_versions or [_Span(meta.weight_version, 0, count)]:
            if span.start != at or not at <= span.end <= count:
                break
            at = span.end
            yield span.start, at, _number(span.version)
        if at != count:
            shown = msgspec.to_builtins(meta.weight_versions)
            raise BadAnswer(f"{self.whose}: the engine's weight versions {shown} are not of {count} tokens")


def vocabulary_of(folder: str | Path) -> int | None:
    """``vocab_size`` of a checkpoint's config.json, its language model's; None where it does not say."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text())
        size = config.get("text_config", config).get("vocab_size")
    except (OSError, ValueError, AttributeError):
        return None
    return size if isinstance(size, int) else None


def _number(version: str) -> int:
    try:
        return int(version)
    except ValueError:
        raise ComponentError(f"the engine serves weights of version {version!r}, which no trainer sent") from None
