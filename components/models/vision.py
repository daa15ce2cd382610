"""What image models share: features from a tower of transformers, and multimodal rotary positions of images.

Positions follow transformers' ``get_rope_index`` of Qwen2.5-VL and GLM-4V, which agree on images; one sample at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.models.base import Encoder, HFConfig, Media, text_rope
from slime_launch.errors import ComponentError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module


def require_sections(hf: HFConfig) -> None:
    """Raises ComponentError unless config.json says which rotary channels follow which axis."""
    if len(text_rope(hf).sections) == 1:
        raise ComponentError("config.json: rope_parameters has no mrope_section: which channels follow which axis")


def image_encoder(tower: Callable[[HFConfig], Module]) -> Encoder:
    """The frozen tower of an image model, as Qwen2.5-VL and GLM-4V name its inputs, its token and its weights."""
    return Encoder(
        tower=tower,
        encode=encode_images,
        media=("pixel_values", "image_grid_thw"),
        token="image_token_id",
        prefix="model.visual.",
    )


def in_type(towers: Module, dtype: torch.dtype) -> Module:
    """Towers with weights of ``dtype``; buffers, such as rotary frequencies, keep theirs, as in transformers."""
    for parameter in towers.parameters():
        parameter.data = parameter.data.to(dtype)
    return towers


def encode_images(tower: Module, media: Mapping[str, Tensor]) -> Tensor:
    """Features [image tokens, hidden] from ``pixel_values`` [patches, features] and ``image_grid_thw`` [images, 3]."""
    features: Tensor = tower(media["pixel_values"], grid_thw=media["image_grid_thw"]).pooler_output
    return features


def image_positions(hf: HFConfig, ids: Sequence[int], media: Media) -> NDArray[np.int64]:
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
