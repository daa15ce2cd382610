"""Prompts as engine and trainer need them: rendered, tokenised and processed once, however many samples follow."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slime_launch.errors import ComponentError
from slime_launch.types import Prompt

_NOT_MEDIA = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True)
class Rendered:
    """One prompt, ready.

    text: the chat template's output, one placeholder an image. ids: tokens with placeholders expanded.
    media: processor outputs for the trainer's model, e.g. pixel_values [patches, features], image_grid_thw [images, 3].
    image_data: the images as data URIs, for the engine.
    """

    text: str
    ids: list[int]
    media: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    image_data: list[str] = field(default_factory=list)


class Renderer:
    """Wraps the checkpoint's own tokenizer, and its processor where it has one."""

    def __init__(self, hf_checkpoint: str) -> None:
        from transformers import AutoProcessor, AutoTokenizer

        folder = Path(hf_checkpoint)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        has_images = any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json"))
        self._processor: Any = AutoProcessor.from_pretrained(folder) if has_images else None

    def render(self, prompt: Prompt) -> Rendered:
        """Apply the chat template and the processor.

        Raises ComponentError for images when the checkpoint has no processor.
        """
        template = self._processor or self.tokenizer
        text: str = template.apply_chat_template(prompt.messages, tokenize=False, add_generation_prompt=True)
        if not prompt.images:
            return Rendered(text, self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if self._processor is None:
            raise ComponentError(f"the prompt {text!r} has images, and the checkpoint has no image processor")
        return self._with_images(text, prompt.images)

    def _with_images(self, text: str, files: tuple[bytes, ...]) -> Rendered:
        from PIL import Image

        images = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
        out = self._processor(text=[text], images=images, return_tensors="np", add_special_tokens=False)
        media = {name: np.asarray(value) for name, value in out.items() if name not in _NOT_MEDIA}
        uris = ["data:image/png;base64," + base64.b64encode(file).decode() for file in files]
        return Rendered(text, np.asarray(out["input_ids"])[0].tolist(), media, uris)

    def decode(self, ids: list[int]) -> str:
        """Text of response ids, special tokens left out."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))
