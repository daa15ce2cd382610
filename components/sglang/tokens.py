"""Image requests by token ids: the engine keeps the ids it is sent, and tokenises no text that it made from them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

_PROCESSOR = "sglang.srt.multimodal.processors.base_processor.BaseMultimodalProcessor"
LOAD_TARGET = f"{_PROCESSOR}.load_mm_data"
COMBINE_TARGET = f"{_PROCESSOR}.process_and_combine_mm_data"


async def keep_ids(original: Callable[..., Awaitable[Any]], processor: Any, *args: Any, **kwargs: Any) -> Any:
    """Give the image processor the text of a request's placeholders alone, and keep the ids themselves.

    SGLang decodes all ids, looks for placeholders in that text, and puts its own expansion into the ids
    (SGLANG_MM_AVOID_RETOKENIZE); a response that spells a placeholder out would be one image short. What stands between
    the images has no part in this. Where SGLang falls back to the text, the count of tokens gives it away.
    """
    ids = kwargs.get("prompt")
    image = getattr(kwargs.get("multimodal_tokens"), "image_token_id", None)
    if not isinstance(ids, list) or kwargs.get("video_data") or kwargs.get("audio_data") or image not in ids:
        return await original(processor, *args, **kwargs)
    output = await original(processor, *args, **kwargs | {"prompt": _images(ids, image)})
    output.input_ids = ids
    return output


def fit_mask(result: Any, *_: Any, **__: Any) -> Any:
    """Let the mask that comes with an image request's ids cover them all, where it is that of the images' text alone.

    GLM-4V's multimodal positions are made with it; nothing in a request is padded.
    """
    _, ids, processed = result
    mask = getattr(processed, "attention_mask", None)
    if mask is not None and mask.shape[-1] != ids.numel():
        processed["attention_mask"] = ids.new_ones((1, ids.numel()))
    return result


def _images(ids: Sequence[int], image: Any) -> list[int]:
    """Each placeholder between its brackets."""
    near = {at + side for at, token in enumerate(ids) if token == image for side in (-1, 0, 1)}
    return [ids[at] for at in sorted(near) if 0 <= at < len(ids)]
