"""Prompts as engine and trainer need them: rendered, tokenised and processed once, however many requests follow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.rollout.chat import ids_behind, text_behind
from components.rollout.media import check_expansion, check_images, data_uri, open_images, png
from slime_launch.errors import ComponentError
from slime_launch.types import Prompt, Turn, TurnImage

if TYPE_CHECKING:
    from PIL.Image import Image

_NOT_MEDIA = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True)
class Rendered:
    """One prompt, ready.

    text: the chat template's output, one placeholder an image. ids: its tokens with placeholders expanded, as the
    trainer takes them. request_ids: the same with one placeholder an image, as the engine takes them.
    media: processor outputs for the trainer's model, e.g. pixel_values [patches, features], image_grid_thw [images, 3].
    image_data: the images as data URIs, for the engine.
    """

    prompt: Prompt
    text: str
    ids: list[int]
    request_ids: list[int]
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
        self._ends = frozenset([self.tokenizer.eos_token_id, *_end_tokens(folder)])

    def render(self, prompt: Prompt) -> Rendered:
        """Apply the chat template and the processor.

        Raises ComponentError for media other than images, for images when the checkpoint has no processor, and where
        images and placeholders do not match.
        """
        check_images(prompt.messages, prompt.images)
        text = self._template(prompt.messages, prompt.tools)
        if prompt.tools and text == self._template(prompt.messages, ()):
            raise ComponentError("a prompt has tools, and the checkpoint's chat template does not show them")
        ids = self.encode(text)
        if prompt.images:
            return self._with_images(prompt, text, ids)
        if (placeholder := self._placeholder()) in ids:
            check_expansion(ids, ids, placeholder, 0)
        return Rendered(prompt, text, ids, ids)

    def continuation(
        self, last: int, messages: Sequence[Mapping[str, Any]], prompt: Prompt, pictures: Sequence[Image] = ()
    ) -> Turn:
        """``messages`` behind an assistant turn whose last token is ``last``, the next assistant turn opened.

        The end of that turn is among the ids unless ``last`` is it. See ``components.rollout.chat``.
        pictures: RGB, of the image parts in order; each goes through the processor by itself.
        """
        text = text_behind(lambda whole: self._template(whole, prompt.tools), messages)
        ids = ids_behind(self.tokenizer, text, messages)
        return self._expanded(ids[1:] if ids[:1] == [last] and last in self._ends else ids, pictures)

    def encode(self, text: str) -> list[int]:
        """Ids of text, no special tokens added."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of response ids, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _template(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> str:
        shown = {"tools": list(tools)} if tools else {}
        return str(
            (self._processor or self.tokenizer).apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True, **shown
            )
        )

    def _placeholder(self) -> int:
        """The token that stands for an image; -1 where there is none."""
        return int(getattr(self._processor, "image_token_id", None) or -1)

    def _expanded(self, short: Sequence[int], pictures: Sequence[Image]) -> Turn:
        placeholder = self._placeholder()
        if pictures and placeholder < 0:
            raise ComponentError("a later turn has images, and the checkpoint has no image processor")
        if short.count(placeholder) != len(pictures):
            raise ComponentError(
                f"the checkpoint's chat template writes {short.count(placeholder)} placeholders (token {placeholder}) "
                f"for the {len(pictures)} images of a later turn; give images in messages of a role that it shows them "
                "of, say user"
            )
        ids: list[int] = []
        images: list[TurnImage] = []
        left = iter(pictures)
        for token in short:
            if token == placeholder:
                images.append(self._turn_image(next(left), len(ids)))
            ids += [token] * (images[-1].tokens if token == placeholder else 1)
        return Turn(ids, tuple(images))

    def _turn_image(self, picture: Image, start: int) -> TurnImage:
        placeholder = self._placeholder()
        ids, media = self._process(self.tokenizer.convert_ids_to_tokens(placeholder), [picture])
        check_expansion([placeholder], ids, placeholder, 1)
        return TurnImage(png(picture), start, len(ids), media)

    def _process(self, text: str, images: Sequence[Image]) -> tuple[list[int], dict[str, NDArray[np.generic]]]:
        """Ids with placeholders expanded, and media."""
        out = self._processor(text=[text], images=list(images), return_tensors="np", add_special_tokens=False)
        media = {name: np.asarray(value) for name, value in out.items() if name not in _NOT_MEDIA}
        return np.asarray(out["input_ids"])[0].tolist(), media

    def _with_images(self, prompt: Prompt, text: str, short: list[int]) -> Rendered:
        if self._placeholder() < 0:
            raise ComponentError(f"the prompt {text!r:.200} has images, and the checkpoint has no image processor")
        check_expansion(short, short, self._placeholder(), len(prompt.images))
        images = open_images(prompt.images)
        ids, media = self._process(text, images)
        check_expansion(short, ids, self._placeholder(), len(images))
        return Rendered(prompt, text, ids, short, media, [data_uri(png(image)) for image in images])


def _end_tokens(folder: Path) -> list[int]:
    """Tokens that end an assistant turn, as the checkpoint says."""
    for name in ("generation_config.json", "config.json"):
        try:
            ends = json.loads((folder / name).read_text()).get("eos_token_id")
        except (OSError, ValueError):
            continue
        if ends is not None:
            return list(ends) if isinstance(ends, list) else [ends]
    return []
