"""From a row to a prompt: which column is what."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

IMAGE_MARK = "<image>"
"""Where an image belongs in a row's text; without any the images come before the first user message."""
_ROLES = ("system", "user", "assistant", "tool", "developer", "observation")
_MISSING = object()


class RowError(ValueError):
    """What is wrong with a row."""


@dataclass(frozen=True)
class Draft:
    """A prompt whose images are still to be read. ``images``: as the row refers to them."""

    messages: list[dict[str, Any]]
    label: str
    images: tuple[Any, ...]
    completion: str
    source: str
    metadata: dict[str, Any]
    tools: tuple[dict[str, Any], ...]
    sampling: dict[str, Any]


@dataclass(frozen=True)
class Columns:
    """Which column holds what; dots reach into nested ones (``reward_model.ground_truth``), null is none.

    prompt: text, or a list of chat messages. label: what rewards compare with; numbers and lists as JSON.
    images: one or a list of paths, bytes, ``{bytes, path}``, data URIs or http(s) URLs; a null has none.
    tools: a list of JSON schemas, or its JSON. sampling: a mapping, or its JSON. completion: a reference answer.
    source: the row's own source name. metadata: columns to keep, by name; a mapping is kept whole.
    """

    prompt: str = "prompt"
    label: str | None = "label"
    images: str | None = None
    tools: str | None = None
    sampling: str | None = None
    completion: str | None = None
    source: str | None = None
    metadata: Sequence[str] = ()

    def draft(self, row: Mapping[str, Any], source: str, template: str, system: str) -> Draft:
        """Read one row.

        source: the prompt's, unless a column names it. template: how a prompt that is text is written, from the row's
        columns and ``prompt``. system: a system message before those of the row.
        Raises RowError.
        """
        found = self._get(row, self.prompt)
        refs = _images(self._optional(row, self.images))
        if isinstance(found, str):
            messages = [{"role": "user", "content": _filled(template, row, found)}]
        else:
            messages = _messages(_parsed(found, list, self.prompt), self.prompt)
        messages, inline = _with_images(messages, refs)
        if system:
            messages.insert(0, {"role": "system", "content": system})
        return Draft(
            messages=messages,
            label=_text(self._optional(row, self.label)),
            images=refs or inline,
            completion=_text(self._optional(row, self.completion)),
            source=_text(self._optional(row, self.source)) or source,
            metadata=self._metadata(row),
            tools=tuple(_tools(self._optional(row, self.tools))),
            sampling=_mapping(self._optional(row, self.sampling), self.sampling),
        )

    def _metadata(self, row: Mapping[str, Any]) -> dict[str, Any]:
        names = [self.metadata] if isinstance(self.metadata, str) else self.metadata
        kept: dict[str, Any] = {}
        for name in names:
            value = self._get(row, name)
            kept |= value if isinstance(value, Mapping) else {name: value}
        return kept

    def _optional(self, row: Mapping[str, Any], name: str | None) -> Any:
        return None if name is None else self._get(row, name)

    def _get(self, row: Mapping[str, Any], name: str) -> Any:
        if name in row:
            return row[name]
        value: Any = row
        for part in name.split("."):
            value = value.get(part, _MISSING) if isinstance(value, Mapping) else _MISSING
        if value is _MISSING:
            raise RowError(f"no column {name}; it has {', '.join(map(str, row))}")
        return value


def _filled(template: str, row: Mapping[str, Any], prompt: str) -> str:
    try:
        return template.format_map({**row, "prompt": prompt})
    except (KeyError, IndexError, AttributeError, ValueError) as error:
        raise RowError(f"template {template!r}: {type(error).__name__} {error}; columns: {', '.join(row)}") from error


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _parsed(value: Any, kind: type, name: str | None) -> Any:
    """``value``, from JSON where it is text; raises RowError unless it is a ``kind`` then."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise RowError(f"{name}: not JSON ({error})") from error
    if not isinstance(value, kind):
        raise RowError(f"{name}: {type(value).__name__} where {kind.__name__} is needed")
    return value


def _mapping(value: Any, name: str | None) -> dict[str, Any]:
    # Arrow fills the columns that other rows have with nulls
    found = {} if value is None else _parsed(value, dict, name)
    return {key: inner for key, inner in found.items() if inner is not None}


def _tools(value: Any) -> list[dict[str, Any]]:
    tools = [] if value is None else _parsed(value, list, "tools")
    return [_parsed(tool, dict, "tools") for tool in tools]


def _images(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def _messages(found: list[Any], name: str) -> list[dict[str, Any]]:
    if not found:
        raise RowError(f"{name}: no message")
    messages = [_mapping(message, f"{name}[{number}]") for number, message in enumerate(found)]
    for number, message in enumerate(messages):
        if message.get("role") not in _ROLES:
            raise RowError(f"{name}[{number}]: role {message.get('role')!r} is none of {', '.join(_ROLES)}")
        if not isinstance(message.get("content", ""), str | list):
            raise RowError(f"{name}[{number}]: content is neither text nor a list of parts")
    return messages


def _with_images(messages: list[dict[str, Any]], refs: tuple[Any, ...]) -> tuple[list[dict[str, Any]], tuple[Any, ...]]:
    """Messages with one image part an image, and the images that parts referred to themselves."""
    inline: list[Any] = []
    split = [message | {"content": _content(message.get("content", ""), bool(refs), inline)} for message in messages]
    held = sum(part["type"] == "image" for message in split for part in _parts(message))
    if refs and not held:
        first = next((number for number, message in enumerate(split) if message["role"] == "user"), None)
        if first is None:
            raise RowError("images, and no user message to show them in")
        text = split[first]["content"]
        rest = [{"type": "text", "text": text}] if isinstance(text, str) else text
        split[first] = split[first] | {"content": [*({"type": "image"} for _ in refs), *rest]}
        held = len(refs)
    if refs and inline:
        raise RowError("images both in their column and in the messages")
    if held != len(refs or inline):
        raise RowError(f"{held} image places in the messages and {len(refs or inline)} images")
    return split, tuple(inline)


def _parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return content if isinstance(content, list) else []


def _content(content: str | list[Any], marked: bool, inline: list[Any]) -> str | list[dict[str, Any]]:
    """Content with bare image parts; what these referred to is put into ``inline``."""
    if isinstance(content, list):
        return [_part(_mapping(part, "content"), inline) for part in content]
    if not marked or IMAGE_MARK not in content:
        return content
    parts: list[dict[str, Any]] = []
    for number, text in enumerate(content.split(IMAGE_MARK)):
        parts += [{"type": "image"}] if number else []
        parts += [{"type": "text", "text": text}] if text else []
    return parts


def _part(part: dict[str, Any], inline: list[Any]) -> dict[str, Any]:
    kind = part.get("type")
    if kind == "text" and isinstance(part.get("text"), str):
        return part
    if kind not in ("image", "image_url"):
        raise RowError(f"a part of type {kind!r}; text and image are taken, video and audio are not")
    ref = part.get("image_url", part.get("image"))
    if (ref := ref.get("url", ref) if isinstance(ref, Mapping) else ref) is not None:
        inline.append(ref)
    return {"type": "image"}
