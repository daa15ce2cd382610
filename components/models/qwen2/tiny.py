"""A tiny Qwen2: the real architecture with random weights, its byte-level tokenizer without merges, ChatML."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from components.models import recipes

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer

CONFIG = Path(__file__).parent / "configs" / "tiny.json"

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
EOS = ("<|im_end|>", "<|endoftext|>")


def _tokenizer() -> Qwen2Tokenizer:
    """One token a byte, after the special tokens and the role names.

    transformers 5 loads every checkpoint of model type qwen2 with this class, whatever the checkpoint names, so the
    character tokenizer of the other tiny models cannot be its tokenizer.
    """
    from tokenizers import AddedToken
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    vocab = {token: i for i, token in enumerate((*SPECIAL, *recipes.ROLES, *sorted(ByteLevel.alphabet())))}
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=[],
        eos_token=EOS[0],
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL),
        padding_side="left",
        chat_template=recipes.CHATML,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in recipes.ROLES])
    return tokenizer


def write_checkpoint(folder: Path, seed: int) -> None:
    """See ``recipes.write_checkpoint``."""
    recipes.write_checkpoint(folder, seed, CONFIG, _tokenizer(), EOS)


class TinyQwen2(recipes.TextRecipe):
    """The recipe: every weight takes part in the warm start."""

    def write(self, folder: Path, seed: int) -> None:
        """See ``write_checkpoint``."""
        write_checkpoint(folder, seed)
