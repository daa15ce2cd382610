"""A tiny Qwen3-MoE: the real architecture with random weights, Qwen3's character tokenizer and ChatML template."""

from __future__ import annotations

from pathlib import Path

from components.models import recipes
from components.models.qwen3.tiny import EOS, SPECIAL
from components.models.tiny import build_tokenizer

CONFIG = Path(__file__).parent / "configs" / "tiny.json"


def write_checkpoint(folder: Path, seed: int) -> None:
    """See ``recipes.write_checkpoint``."""
    tokenizer = build_tokenizer(SPECIAL, recipes.ROLES, eos=EOS[0], pad=EOS[1], chat_template=recipes.CHATML)
    recipes.write_checkpoint(folder, seed, CONFIG, tokenizer, EOS)


class TinyQwen3Moe(recipes.TextRecipe):
    """The recipe: every weight takes part in the warm start."""

    def write(self, folder: Path, seed: int) -> None:
        """See ``write_checkpoint``."""
        write_checkpoint(folder, seed)
