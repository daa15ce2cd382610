"""Multimodal rotary positions, by the rule of transformers' ``Glm4vModel.get_rope_index``, one sample at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from components.models.base import HFConfig, Media
from slime_launch.errors import ComponentError


def positions(hf: HFConfig, ids: Sequence[int], media: Media) -> NDArray[np.int64]:
    """Positions [3, S] (time, height, width) for ids [S] whose image placeholders are expanded.

    Text advances all three by one a token; an image spans a grid that starts where the text stopped, and the text after
    it goes on past the grid's longer side. ``media["image_grid_thw"]`` [images, 3] is in patches.

    Raises ComponentError when the placeholders and the grids do not fit together.
    """
    grids = media.get("image_grid_thw")
    if grids is None:
        return _text(0, len(ids))
    merge = hf["vision_config"]["spatial_merge_size"]
    placeholders = np.flatnonzero(np.asarray(ids) == hf["image_token_id"])
    parts, done, position = [], 0, 0
    for time, height, width in np.asarray(grids, dtype=np.int64) // (1, merge, merge):
        tokens = time * height * width
        start = int(placeholders[0]) if len(placeholders) else len(ids)
        if not np.array_equal(placeholders[:tokens], np.arange(start, start + tokens)):
            raise ComponentError(
                f"{tokens} image tokens find {len(placeholders)} placeholders from token {start} on, not in one run; "
                "prompt_ids must be the processor's, placeholders expanded"
            )
        parts += [_text(position, start - done), _grid(position + start - done, time, height, width)]
        position += start - done + max(height, width)
        done, placeholders = start + int(tokens), placeholders[tokens:]
    return np.concatenate([*parts, _text(position, len(ids) - done)], axis=1)


def _text(first: int, length: int) -> NDArray[np.int64]:
    return np.broadcast_to(np.arange(first, first + length), (3, length))


def _grid(first: int, time: int, height: int, width: int) -> NDArray[np.int64]:
    return np.indices((time, height, width)).reshape(3, -1) + first
