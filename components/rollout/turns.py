"""Images that later turns bring: read within bounds, and one placeholder each in what the engine is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from components.rollout.media import count_images, open_images
from slime_launch.errors import ComponentError
from slime_launch.interfaces import Images
from slime_launch.types import Sample

if TYPE_CHECKING:
    from PIL.Image import Image


def split_images(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[Any]]:
    """Messages with bare image parts, as chat templates take them, and what those referred to, in order.

    Raises ComponentError for a part of any other kind than text and image, and for an image part without ``image``.
    """
    count_images(messages)
    refs: list[Any] = []
    bare = []
    for message in messages:
        content = message.get("content")
        parts = content if isinstance(content, list | tuple) else []
        bare.append({**message, "content": [_bare(part, refs) for part in parts]} if parts else dict(message))
    return bare, refs


def _bare(part: Mapping[str, Any], refs: list[Any]) -> dict[str, Any]:
    if part.get("type") != "image":
        return dict(part)
    if part.get("image") is None or set(part) != {"type", "image"}:
        raise ComponentError(
            f"an image part of a later turn has {sorted(part)}; it is {{'type': 'image', 'image': ...}}, with bytes, a "
            "Pillow image, or what else rollout.media reads"
        )
    refs.append(part["image"])
    return {"type": "image"}


async def read_images(images: Images | None, refs: Sequence[Any]) -> list[Image]:
    """RGB pictures, read beside the event loop.

    Raises ComponentError for one that cannot be had or breaks the bounds.
    """
    if refs and images is None:
        raise ComponentError("an image in a later turn, and rollout.media names nothing that reads it")
    if images is None or not refs:
        return []
    try:
        files = await asyncio.gather(*(asyncio.to_thread(images.load, ref) for ref in refs))
    except ValueError as error:
        raise ComponentError(f"an image in a later turn: {error} (rollout.media says what is read)") from error
    return open_images(files)


def short_response(sample: Sample) -> list[int]:
    """The response with one placeholder an image.

    Raises ComponentError where an image's placeholders are no longer in their places.
    """
    short: list[int] = []
    done = 0
    for image in sample.images:
        end = image.start + image.tokens
        run = sample.response_ids[image.start : end]
        if image.start < done or len(run) != image.tokens or len(set(run)) != 1:
            raise ComponentError(
                f"sample {sample.index} of group {sample.group}: response_ids {image.start} to {end} are not the "
                f"placeholders of an image that came there; only add to a response"
            )
        short += sample.response_ids[done : image.start + 1]
        done = end
    return short + sample.response_ids[done:]
