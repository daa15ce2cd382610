"""A tiny GLM-Omni: the real GLM-4V architecture with random weights, a character tokenizer and its processor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from components.models import recipes
from components.models.recipes import GLM_SPECIAL as SPECIAL
from components.models.tiny import build_tokenizer

if TYPE_CHECKING:
    from transformers import Glm4vProcessor, PreTrainedTokenizerFast

CONFIG = Path(__file__).parent / "configs" / "tiny.json"

MEDIA = SPECIAL[10:]
"""Never sampled: a media token in a response has no media behind it."""
EOS = ("<|endoftext|>", "<|user|>", "<|observation|>")

CHAT_TEMPLATE = """\
[gMASK]<sop>
{%- for message in messages -%}
{{- "<|" + ("observation" if message.role == "tool" else message.role) + "|>\n" -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == "image" -%}
{{- "<|begin_of_image|><|image|><|end_of_image|>" -}}
{%- elif part.type == "video" -%}
{{- "<|begin_of_video|><|video|><|end_of_video|>" -}}
{%- else -%}
{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|assistant|>\n" -}}{%- endif -%}
"""

PIXELS = {"shortest_edge": 2 * 28 * 28, "longest_edge": 2 * 28 * 28 * 64}
"""Bounds on frames x height x width of a resized image: 1 to 64 image tokens; 56 x 56 stays and gives 4."""


def _tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(SPECIAL, (), eos="<|endoftext|>", pad="<|endoftext|>", chat_template=CHAT_TEMPLATE)


def build_processor() -> Glm4vProcessor:
    """GLM-4V's processor around a character tokenizer."""
    from transformers import Glm4vImageProcessor, Glm4vProcessor, Glm4vVideoProcessor

    return Glm4vProcessor(
        image_processor=Glm4vImageProcessor(size=PIXELS),
        tokenizer=_tokenizer(),
        video_processor=Glm4vVideoProcessor(size=PIXELS),
        chat_template=CHAT_TEMPLATE,
    )


def write_checkpoint(folder: Path, seed: int) -> None:
    """See ``recipes.write_checkpoint``."""
    recipes.write_checkpoint(folder, seed, CONFIG, build_processor(), EOS, MEDIA)


class TinyGlmOmni(recipes.TowerRecipe):
    """The recipe: the vision tower learns to tell the labels apart, then stays as it is."""

    def write(self, folder: Path, seed: int) -> None:
        """See ``write_checkpoint``."""
        write_checkpoint(folder, seed)
