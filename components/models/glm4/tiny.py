"""A tiny GLM-4: the real architecture with random weights, a character tokenizer and its chat format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from components.models import recipes
from components.models.recipes import GLM_SPECIAL as SPECIAL
from components.models.tiny import build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONFIG = Path(__file__).parent / "configs" / "tiny.json"

CHAT_TEMPLATE = """\
[gMASK]<sop>
{%- for message in messages -%}
{{- "<|" + ("observation" if message.role == "tool" else message.role) + "|>\n" -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}{{- part.text -}}{%- endfor -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|assistant|>\n" -}}{%- endif -%}
"""
EOS = (
    "<|endoftext|>",
    "<|user|>",
    "<|observation|>",
)


def _tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(SPECIAL, (), eos="<|endoftext|>", pad="<|endoftext|>", chat_template=CHAT_TEMPLATE)


def write_checkpoint(folder: Path, seed: int) -> None:
    """See ``recipes.write_checkpoint``."""
    recipes.write_checkpoint(folder, seed, CONFIG, _tokenizer(), EOS)


class TinyGlm4(recipes.TextRecipe):
    """The recipe: every weight takes part in the warm start."""

    def write(self, folder: Path, seed: int) -> None:
        """See ``write_checkpoint``."""
        write_checkpoint(folder, seed)
