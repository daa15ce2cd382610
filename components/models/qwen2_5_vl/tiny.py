"""A tiny Qwen2.5-VL: the real architecture with random weights, a character tokenizer and its processor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from components.models import recipes
from components.models.tiny import build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLProcessor

CONFIG = Path(__file__).parent / "configs" / "tiny.json"

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<tool_call>",
)
MEDIA = SPECIAL[3:8]
"""Never sampled: a media token in a response has no media behind it."""
EOS = ("<|im_end|>", "<|endoftext|>")

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- "<|im_start|>" + message.role + "\n" -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == "image" -%}
{{- "<|vision_start|><|image_pad|><|vision_end|>" -}}
{%- elif part.type == "video" -%}
{{- "<|vision_start|><|video_pad|><|vision_end|>" -}}
{%- else -%}
{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- "<|im_end|>\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\n" -}}{%- endif -%}
"""

PIXELS = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 64}
"""Bounds on height x width of a resized image: 1 to 64 image tokens; 56 x 56 stays and gives 4."""


def _tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(SPECIAL, recipes.ROLES, eos=EOS[0], pad="<|endoftext|>", chat_template=CHAT_TEMPLATE)


def _processor() -> Qwen2_5_VLProcessor:
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=PIXELS),
        tokenizer=_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(size=PIXELS),
        chat_template=CHAT_TEMPLATE,
    )


def write_checkpoint(folder: Path, seed: int) -> None:
    """See ``recipes.write_checkpoint``."""
    recipes.write_checkpoint(folder, seed, CONFIG, _processor(), EOS, MEDIA)


class TinyQwen2_5VL(recipes.TowerRecipe):
    """The recipe: the vision tower learns to tell the labels apart, then stays as it is."""

    def write(self, folder: Path, seed: int) -> None:
        """See ``write_checkpoint``."""
        write_checkpoint(folder, seed)
