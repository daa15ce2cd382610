"""What stands beside the text of a prompt: which kinds are taken, and that every image has its place."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from slime_launch.errors import ComponentError

if TYPE_CHECKING:
    from PIL.Image import Image

_TAKEN = ("text", "image")


def count_images(messages: Sequence[Mapping[str, Any]]) -> int:
    """Image parts of chat messages.

    Raises ComponentError for a part of any other kind than text and image, e.g. video and audio.
    """
    kinds = [str(part.get("type", "text")) for _, part in _parts(messages)]
    if strange := sorted(set(kinds) - set(_TAKEN)):
        raise ComponentError(
            f"a message has a part of type {', '.join(strange)}: only text and image parts are sent and trained on "
            '(an image as {"type": "image"}, its file in Prompt.images, in a later turn beside it); leave others out'
        )
    return kinds.count("image")


def check_images(messages: Sequence[Mapping[str, Any]], images: Sequence[bytes]) -> None:
    """Raises ComponentError unless there is one image part an image, none of which names a file of its own."""
    if (parts := count_images(messages)) != len(images):
        raise ComponentError(f"a prompt has {parts} image parts and {len(images)} images; give one part an image")
    for role, part in _parts(messages):
        if part.get("type") == "image" and (named := sorted(set(part) - {"type"})):
            raise ComponentError(
                f"an image part of a message of {role} has {', '.join(named)}: the engine opens no file or address; "
                "put the file's bytes into Prompt.images"
            )


def open_images(files: Sequence[bytes]) -> list[Image]:
    """Encoded files as RGB pictures.

    Raises ComponentError for one that is no picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        return [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ComponentError(f"an image cannot be read: {error}") from error


def png(image: Image) -> bytes:
    """A picture as the engine gets it: the pixels that our own processor saw, whatever its file said."""
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()


def data_uri(file: bytes) -> str:
    """A PNG as ``image_data`` takes it."""
    return "data:image/png;base64," + base64.b64encode(file).decode()


def check_expansion(short: Sequence[int], expanded: Sequence[int], placeholder: int, images: int) -> None:
    """Raises ComponentError unless ``expanded`` is ``short`` with each of its placeholders repeated, one an image.

    The engine expands them likewise, and trainer and engine then count the same tokens.
    """
    if short.count(placeholder) != images:
        raise ComponentError(
            f"a prompt with {images} images has {short.count(placeholder)} placeholders (token {placeholder}); "
            "its text must not contain the placeholder's own"
        )
    if not _repeats(short, expanded, placeholder):
        raise ComponentError(
            f"the checkpoint's processor puts more into a prompt than repeated placeholders (token {placeholder}): "
            "such a model's image prompts are not taken"
        )


def _repeats(short: Sequence[int], expanded: Sequence[int], placeholder: int) -> bool:
    at = 0
    for number, token in enumerate(short):
        if at >= len(expanded) or expanded[at] != token:
            return False
        at += 1
        last_of_run = token == placeholder and short[number + 1 : number + 2] != [placeholder]
        while last_of_run and at < len(expanded) and expanded[at] == placeholder:
            at += 1
    return at == len(expanded)


def _parts(messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(role, part) of every message whose content is a list of parts."""
    for message in messages:
        content = message.get("content")
        if isinstance(content, list | tuple):
            for part in content:
                yield str(message.get("role")), part
