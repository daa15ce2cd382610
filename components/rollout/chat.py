"""Later turns of a conversation as a chat template writes them, behind tokens that stay as they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from slime_launch.errors import ComponentError

Message = Mapping[str, Any]
Render = Callable[[Sequence[Message]], str]
"""The chat template: messages -> text, the next assistant turn opened."""

_QUESTION = {"role": "user", "content": "?"}
_ANSWERS = ("@@one answer@@", "@@and quite another answer@@")
"""Stand for what the assistant said, which is known as tokens only."""


def text_behind(render: Render, messages: Sequence[Message]) -> str:
    """What the template puts behind an assistant turn when ``messages`` follow it: the turn's end, they, the next turn.

    Found by rendering a short conversation twice, with different answers. Raises ComponentError where that depends on
    the answer, or leaves out a message.
    """
    if not messages:
        raise ComponentError("a conversation goes on with messages; none were given")
    tails = {_behind(render, answer, messages) for answer in _ANSWERS}
    if len(tails) != 1:
        raise ComponentError(
            "the checkpoint's chat template writes later turns in a way that depends on what the assistant said: "
            "a conversation's tokens cannot go on as they are"
        )
    tail = tails.pop()
    for message, content in _contents(messages):
        if _place(tail, content, 0) is None:
            raise ComponentError(
                f"the checkpoint's chat template leaves out a message of role {message['role']} ({content!r:.80}); "
                "use roles that it knows"
            )
    return tail


def ids_behind(tokenizer: Any, text: str, messages: Sequence[Message]) -> list[int]:
    """Ids of what ``text_behind`` gave. Special tokens that the messages themselves spell out stay plain text.

    Else a tool could end a turn, or put an image's placeholder where no image is.
    """
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    ids: list[int] = []
    done = 0
    for _, content in _contents(messages):
        if any(token in content for token in special):
            start, shown = _place(text, content, done) or (done, "")
            ids += _ids(tokenizer, text[done:start]) + _ids(tokenizer, shown, split_special_tokens=True)
            done = start + len(shown)
    return ids + _ids(tokenizer, text[done:])


def _behind(render: Render, answer: str, messages: Sequence[Message]) -> str:
    try:
        text = render([_QUESTION, {"role": "assistant", "content": answer}, *messages])
    except Exception as error:  # a template raises whatever it likes
        raise ComponentError(f"the checkpoint's chat template refuses {list(messages)!r:.200}: {error}") from error
    if text.count(answer) != 1:
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise ComponentError(
            f"the checkpoint's chat template writes an assistant turn {text.count(answer)} times when messages of "
            f"{roles} follow it: a conversation's tokens cannot go on as they are"
        )
    return text.partition(answer)[2]


def _contents(messages: Sequence[Message]) -> Iterator[tuple[Message, str]]:
    """(message, text) of each part that has a text."""
    for message in messages:
        content = message.get("content") or ""
        for part in [content] if isinstance(content, str) else [str(part.get("text", "")) for part in content]:
            if part.strip():
                yield message, part.strip()


def _place(text: str, content: str, start: int) -> tuple[int, str] | None:
    """Where a content stands in a text and what it looks like there: as it is, or as a JSON string."""
    for shown in (content, json.dumps(content, ensure_ascii=False)[1:-1]):
        if (at := text.find(shown, start)) >= 0:
            return at, shown
    return None


def _ids(tokenizer: Any, text: str, **options: bool) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, **options)["input_ids"] if text else []
    return ids
