"""The task: put the letters of a word in order, ``dbca`` -> ``[abcd]``."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

from components.data.order import Shuffled
from slime_launch.errors import ComponentError
from slime_launch.types import Prompt


class SortLetters:
    """Words of ``length`` letters out of ``alphabet``; ``eval_size`` of them are held out, the same for every seed.

    Raises ComponentError when no word would be left to train on.
    """

    def __init__(self, seed: int, alphabet: str = "abcdef", length: int = 4, eval_size: int = 100) -> None:
        words = ["".join(letters) for letters in product(alphabet, repeat=length)]
        if not 0 < eval_size < len(words):
            raise ComponentError(
                f"data.eval_size={eval_size}: give 1 to {len(words) - 1}, one less than there are words"
            )
        random.Random(0).shuffle(words)
        self._eval = [_prompt(word) for word in words[:eval_size]]
        self._train = Shuffled([_prompt(word) for word in words[eval_size:]], seed)

    def take(self, num_prompts: int) -> list[Prompt]:
        """The next training prompts."""
        return self._train.take(num_prompts)

    def eval_sets(self) -> dict[str, list[Prompt]]:
        """One held-out set, ``sort_letters``."""
        return {"sort_letters": list(self._eval)}

    def state_dict(self) -> dict[str, Any]:
        """Where ``take`` stands."""
        return self._train.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._train.load_state_dict(state)


def _prompt(word: str) -> Prompt:
    answer = "".join(sorted(word))
    return Prompt([{"role": "user", "content": word}], label=answer, completion=f"[{answer}]", source="sort_letters")
