"""A magnifier: the model writes ``<zoom>25 0 75 50</zoom>`` and is shown that part of the prompt's image, enlarged."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from slime_launch.errors import ComponentError
from slime_launch.types import Sample

_CALL = re.compile(r"<zoom>([0-9 ]{1,40})</zoom>")


class Zoom:
    """components.rollout.tools.Environment: a turn without a call ends the rollout, one with a call gets a crop.

    A call has four whole percentages of the first image's sides: left, top, right, bottom. The crop comes as a user's
    message, ``side`` pixels wide and high at most in its own proportions; a box that is none is answered by
    ``error: ...``.
    """

    def __init__(self, side: int = 448) -> None:
        if side < 1:
            raise ComponentError(f"zoom: side={side}: must be at least 1 pixel")
        self._side = side

    async def step(self, sample: Sample, text: str) -> Sequence[Mapping[str, Any]]:
        """The part that the turn's first call names."""
        call = _CALL.search(text)
        if call is None:
            return []
        box = [int(number) for number in call[1].split()]
        if not sample.prompt.images:
            return [{"role": "user", "content": "error: there is no image"}]
        if len(box) != 4 or not (0 <= box[0] < box[2] <= 100 and 0 <= box[1] < box[3] <= 100):
            return [{"role": "user", "content": "error: four percentages, left top right bottom"}]
        return [{"role": "user", "content": [{"type": "image", "image": self._crop(sample.prompt.images[0], box)}]}]

    def _crop(self, file: bytes, box: Sequence[int]) -> Any:
        from PIL import Image

        whole = Image.open(io.BytesIO(file)).convert("RGB")
        sides = (*whole.size, *whole.size)
        left, top, right, bottom = (share * side // 100 for share, side in zip(box, sides, strict=True))
        part = whole.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
        scale = self._side / max(part.size)
        return part.resize((max(1, round(part.width * scale)), max(1, round(part.height * scale))))
