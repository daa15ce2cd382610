"""A tiny Qwen3: the real architecture with random weights, a character tokenizer and a ChatML template."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from components.models import recipes
from components.models.tiny import build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONFIG = Path(__file__).parent / "configs" / "tiny.json"

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
)
EOS = (
    "<|im_end|>",
    "<|endoftext|>",
)


def _tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(SPECIAL, recipes.ROLES, eos="<|im_end|>", pad="<|endoftext|>", chat_template=recipes.CHATML)


def write_checkpoint(folder: Path, seed: int) -> None:
    """See ``recipes.write_checkpoint``."""
    recipes.write_checkpoint(folder, seed, CONFIG, _tokenizer(), EOS)


class TinyQwen3(recipes.TextRecipe):
    """The recipe: every weight takes part in the warm start."""

    def write(self, folder: Path, seed: int) -> None:
        """See ``write_checkpoint``."""
        write_checkpoint(folder, seed)
