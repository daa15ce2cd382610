"""Generated reasoning tasks from the reasoning-gym package."""

from __future__ import annotations

import hashlib
import json
import random
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from components.data.order import Shuffled
from slime_launch.errors import ComponentError
from slime_launch.types import Prompt

SEED_STRIDE = 100_000_000
"""The package seeds entry i with seed + i, so neighbouring seeds share entries; this keeps the ranges apart."""
MAX_TRIES_PER_ENTRY = 20


class ReasoningGym:
    """Questions of one task; the answer stands in brackets, e.g. ``[42]``.

    task, task_args: as ``reasoning_gym.create_dataset`` takes them.
    question: how a prompt is written, from the entry's ``question`` and the entries of its metadata.
    turns: how the reference's turns before the answer are written, likewise, e.g. a call of a tool.
    turns_share: of the references, about so many have them; the others are the answer alone.
    size: number of training questions, all different; ``eval_size`` further ones are held out, the same for every seed.
    Raises ComponentError for an unknown task or argument, or when the task has too few different questions.
    """

    def __init__(
        self,
        task: str,
        size: int,
        eval_size: int,
        seed: int,
        task_args: Mapping[str, Any] | None = None,
        question: str = "{question}",
        turns: Sequence[str] = (),
        turns_share: float = 1.0,
    ) -> None:
        if not 0 <= turns_share <= 1:
            raise ComponentError(f"data.turns_share={turns_share}: must be from 0 to 1")
        self._turns_share = turns_share
        self._task, self._args, self._question, self._turns = task, dict(task_args or {}), question, tuple(turns)
        for name, written in (("question", question), *(("turns", turn) for turn in turns)):
            _check_format(name, written)
        self._eval = self._draw(eval_size, 0, frozenset())
        held_out = frozenset(_text(prompt) for prompt in self._eval)
        train = self._draw(size, SEED_STRIDE * (seed + 1), held_out)
        self._train, self._digest = Shuffled(train, seed), _digest(train)

    def take(self, num_prompts: int) -> list[Prompt]:
        """The next training prompts, in an order fixed by the seed."""
        return self._train.take(num_prompts)

    def eval_sets(self) -> dict[str, list[Prompt]]:
        """One set, named after the task."""
        return {self._task: list(self._eval)}

    def state_dict(self) -> dict[str, Any]:
        """Where ``take`` stands, and of which prompts."""
        return self._train.state_dict() | {"digest": self._digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; see ``components.data.order.Shuffled``.

        Raises ComponentError when the prompts are not those that the state was made of.
        """
        if state.get("digest") != self._digest:
            raise ComponentError(
                f"data.task={self._task}: the saved position is of other prompts; give the seed, task, task_args, "
                "question and turns that the run had"
            )
        self._train.load_state_dict(state)

    def _draw(self, count: int, first_seed: int, taken: frozenset[str]) -> list[Prompt]:
        """``count`` prompts with different texts, none of them in ``taken``."""
        found: dict[str, Prompt] = {}
        for entry in self._entries(first_seed, count * MAX_TRIES_PER_ENTRY):
            prompt = self._prompt(entry)
            if _text(prompt) not in taken:
                found.setdefault(_text(prompt), prompt)
            if len(found) == count:
                return list(found.values())
        raise ComponentError(
            f"data.task={self._task}: only {len(found)} different questions of the {count} asked for; "
            "lower data.size or data.eval_size, or widen data.task_args"
        )

    def _entries(self, first_seed: int, count: int) -> Iterator[dict[str, Any]]:
        import reasoning_gym

        try:
            yield from reasoning_gym.create_dataset(self._task, seed=first_seed, size=count, **self._args)
        except (ValueError, TypeError, AssertionError) as error:
            raise ComponentError(f"data.task={self._task}, data.task_args={self._args}: {error}") from error

    def _prompt(self, entry: dict[str, Any]) -> Prompt:
        return Prompt(
            messages=[{"role": "user", "content": self._fill("question", self._question, entry)}],
            label=entry["answer"],
            completion=f"[{entry['answer']}]",
            turns=self._reference(entry),
            source=self._task,
            metadata={"task": self._task, "entry": entry},
        )

    def _reference(self, entry: dict[str, Any]) -> tuple[str, ...]:
        """The turns before the answer; which entries have them depends on nothing but the entry."""
        if random.Random(str(entry["question"])).random() >= self._turns_share:
            return ()
        return tuple(self._fill("turns", turn, entry) for turn in self._turns)

    def _fill(self, name: str, written: str, entry: dict[str, Any]) -> str:
        try:
            return written.format_map({**entry["metadata"], "question": entry["question"]})
        except KeyError as error:
            raise ComponentError(
                f"data.{name}={written}: {self._task} has no field {error}; "
                f"it has question, {', '.join(entry['metadata'])}"
            ) from error


def _digest(prompts: Sequence[Prompt]) -> str:
    """Of what the prompts ask and what is right."""
    digest = hashlib.blake2b(digest_size=16)
    for prompt in prompts:
        digest.update(json.dumps([_text(prompt), prompt.label, prompt.turns]).encode())
    return digest.hexdigest()


def _text(prompt: Prompt) -> str:
    return str(prompt.messages[0]["content"])


def _check_format(name: str, written: str) -> None:
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(written) if field]
    except ValueError as error:
        raise ComponentError(f"data.{name}={written}: not a format string ({error})") from error
    if not fields:
        raise ComponentError(f"data.{name}={written}: names no field, e.g. {{question}}")
