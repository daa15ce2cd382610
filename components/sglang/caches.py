"""What stock SGLang remembers of old weights: flushing its caches leaves the embeddings of images."""

from __future__ import annotations

from typing import Any

FLUSH_TARGET = "sglang.srt.managers.scheduler.Scheduler.flush_cache"


def forget_images(flushed: bool, *_: Any, **__: Any) -> bool:
    """Drop the image embeddings with the prefixes, as the tower or projector that made them may have new weights."""
    from sglang.srt.managers import mm_schedule

    if flushed and mm_schedule.embedding_cache is not None:
        mm_schedule.embedding_cache.clear()
    return flushed
