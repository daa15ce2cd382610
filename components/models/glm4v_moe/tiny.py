"""A tiny GLM-4.5V: the real architecture with random weights, GLM-4V's processor around a character tokenizer."""

from __future__ import annotations

from pathlib import Path

from components.models import recipes
from components.models.glm_omni.tiny import EOS, MEDIA, build_processor

CONFIG = Path(__file__).parent / "configs" / "tiny.json"


def write_checkpoint(folder: Path, seed: int) -> None:
    """See ``recipes.write_checkpoint``."""
    recipes.write_checkpoint(folder, seed, CONFIG, build_processor(), EOS, MEDIA)


class TinyGlm4vMoe(recipes.TowerRecipe):
    """The recipe: the vision tower learns to tell the labels apart, then stays as it is."""

    def write(self, folder: Path, seed: int) -> None:
        """See ``write_checkpoint``."""
        write_checkpoint(folder, seed)
