"""Handwritten digits: 1,797 real scans that ship with scikit-learn (UCI optdigits, 8x8 grey)."""

from __future__ import annotations

import io
import random
from typing import TYPE_CHECKING, Any

from components.data.order import Shuffled
from slime_launch.errors import ComponentError
from slime_launch.types import Prompt

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

QUESTION = "Digit?"
NUM_CLASSES = 10
SPLIT_SEED = 0
"""Fixes the held-out images whatever the run's seed, so that runs compare."""


class Digits:
    """Asks which digit an image shows; the answer is one digit in brackets, e.g. ``[7]``.

    ``eval_size`` held-out images, the same number of each digit, are never trained on.
    Raises ComponentError when ``eval_size`` is not a multiple of 10 from 10 to 1000.
    """

    def __init__(self, seed: int, eval_size: int = 200, image_size: int = 56) -> None:
        if eval_size % NUM_CLASSES or not NUM_CLASSES <= eval_size <= 1000:
            raise ComponentError(f"data.eval_size={eval_size}: must be a multiple of 10 from 10 to 1000")
        from sklearn.datasets import load_digits

        scans = load_digits()
        prompts = [
            _prompt(row, scan_HW, int(digit), image_size)
            for row, (scan_HW, digit) in enumerate(zip(scans.images, scans.target, strict=True))
        ]
        held_out = _held_out(prompts, eval_size)
        self._eval = [prompts[row] for row in sorted(held_out)]
        self._train = Shuffled([prompt for row, prompt in enumerate(prompts) if row not in held_out], seed)

    def take(self, num_prompts: int) -> list[Prompt]:
        """The next training prompts, in an order fixed by the seed."""
        return self._train.take(num_prompts)

    def eval_sets(self) -> dict[str, list[Prompt]]:
        """One set, ``digits``."""
        return {"digits": list(self._eval)}

    def state_dict(self) -> dict[str, Any]:
        """Where ``take`` stands."""
        return self._train.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; see ``components.data.order.Shuffled``."""
        self._train.load_state_dict(state)


def _held_out(prompts: list[Prompt], eval_size: int) -> set[int]:
    """Row numbers of the held-out images, the same number of each digit."""
    chosen: set[int] = set()
    generator = random.Random(SPLIT_SEED)
    for digit in range(NUM_CLASSES):
        rows = [row for row, prompt in enumerate(prompts) if prompt.label == str(digit)]
        chosen.update(generator.sample(rows, eval_size // NUM_CLASSES))
    return chosen


def _prompt(row: int, scan_HW: NDArray[np.float64], digit: int, image_size: int) -> Prompt:
    """``scan_HW``: 8x8 ink from 0 to 16."""
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    return Prompt(
        messages=[{"role": "user", "content": content}],
        label=str(digit),
        images=(_png(scan_HW, image_size),),
        completion=f"[{digit}]",
        source="digits",
        metadata={"row": row},
    )


def _png(scan_HW: NDArray[np.float64], size: int) -> bytes:
    from PIL import Image

    pixels_HW = (scan_HW * (255 / 16)).astype("uint8")
    image = Image.fromarray(pixels_HW).resize((size, size), Image.Resampling.BICUBIC).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
