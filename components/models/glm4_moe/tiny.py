"""A tiny GLM-4.5: the real architecture with random weights, GLM-4's character tokenizer and chat format."""

from __future__ import annotations

from pathlib import Path

from components.models import recipes
from components.models.glm4.tiny import CHAT_TEMPLATE, EOS
from components.models.recipes import GLM_SPECIAL as SPECIAL
from components.models.tiny import build_tokenizer

CONFIG = Path(__file__).parent / "configs" / "tiny.json"


def write_checkpoint(folder: Path, seed: int) -> None:
    """See ``recipes.write_checkpoint``."""
    tokenizer = build_tokenizer(SPECIAL, (), eos=EOS[0], pad=EOS[0], chat_template=CHAT_TEMPLATE)
    recipes.write_checkpoint(folder, seed, CONFIG, tokenizer, EOS)


class TinyGlm4Moe(recipes.TextRecipe):
    """The recipe: every weight takes part in the warm start; the router's selection bias stays zero."""

    def write(self, folder: Path, seed: int) -> None:
        """See ``write_checkpoint``."""
        write_checkpoint(folder, seed)
