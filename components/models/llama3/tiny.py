"""A tiny Llama 3: the real architecture with random weights, a character tokenizer and its chat format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from components.models import recipes
from components.models.tiny import build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONFIG = Path(__file__).parent / "configs" / "tiny.json"

SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|reserved_special_token_2|>",
    "<|reserved_special_token_3|>",
)
WORDS = (*recipes.ROLES, "ipython")
CHAT_TEMPLATE = """\
<|begin_of_text|>
{%- for message in messages -%}
{{- "<|start_header_id|>" + message.role + "<|end_header_id|>\n\n" -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}{{- part.text -}}{%- endfor -%}
{%- endif -%}
{{- "<|eot_id|>" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|start_header_id|>assistant<|end_header_id|>\n\n" -}}{%- endif -%}
"""
EOS = (
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|eom_id|>",
)


def _tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(
        SPECIAL, WORDS, eos="<|eot_id|>", pad="<|finetune_right_pad_id|>", chat_template=CHAT_TEMPLATE
    )


def write_checkpoint(folder: Path, seed: int) -> None:
    """See ``recipes.write_checkpoint``."""
    recipes.write_checkpoint(folder, seed, CONFIG, _tokenizer(), EOS)


class TinyLlama3(recipes.TextRecipe):
    """The recipe: every weight takes part in the warm start."""

    def write(self, folder: Path, seed: int) -> None:
        """See ``write_checkpoint``."""
        write_checkpoint(folder, seed)
