"""Prompts from files: jsonl, parquet, Hugging Face datasets saved to disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from components.data.columns import Columns, Draft, RowError
from components.data.media import Media, MediaError
from components.data.order import InOrder, Shuffled
from components.data.rows import ArrowRows, JsonLines, open_rows
from slime_launch.data_files import FileRows
from slime_launch.errors import ComponentError
from slime_launch.types import Metrics, Prompt

_SHOWN_ROWS = 5
_FETCHERS = 8
TOO_LONG, BAD_IMAGE = "too_long", "bad_image"


@dataclass(frozen=True)
class _Reading:
    """How rows become drafts."""

    columns: Columns
    name: str
    template: str
    system: str

    def draft(self, rows: JsonLines | ArrowRows, number: int) -> Draft:
        row = rows[number]
        try:
            return self.columns.draft(row, self.name, self.template, self.system)
        except RowError as error:
            raise ComponentError(f"{rows.where(number)}: {error}") from error


class Files:
    """Prompts of one file, or of several one after the other; each ``FILE`` or ``FILE[start:stop]``.

    path: the file or files: .jsonl, .parquet, or a folder that ``datasets.save_to_disk`` wrote. Null: nothing to train
        on, for a source that held-out sets alone come from.
    columns: which column is what, see ``components.data.columns.Columns``.
    eval_paths: held-out sets by name; a file's rows may not be in both.
    name: the prompts' source, unless a column names it; null takes the first file's.
    template, system: see ``Columns.draft``.
    shuffle: each round in an order of its own, fixed by the seed; false takes the rows as they stand.
    max_prompt_tokens: longer prompts are left out and counted; null takes all.
    media: where images may come from and how large they may be, see ``components.data.media.Media``.
    on_bad_image: stop, or skip the row and count it.
    check_rows: read every row once at the start, so that a malformed one is found before anything runs.
    Raises ComponentError that names file and line.
    """

    def __init__(
        self,
        path: str | Sequence[str] | None,
        seed: int,
        columns: Mapping[str, Any] | None = None,
        eval_paths: Mapping[str, str] | None = None,
        name: str | None = None,
        template: str = "{prompt}",
        system: str = "",
        shuffle: bool = True,
        max_prompt_tokens: int | None = None,
        media: Mapping[str, Any] | None = None,
        on_bad_image: Literal["stop", "skip"] = "stop",
        check_rows: bool = True,
    ) -> None:
        paths = [path] if isinstance(path, str) else list(path or ())
        named = [*paths, *(eval_paths or {}).values()]
        if not named:
            raise ComponentError(f"data.path={path}: no file")
        self.name = name or Path(named[0].partition("[")[0]).stem
        self._reading = _Reading(_build(Columns, "columns", columns), self.name, template, system)
        self._media: Media = _build(Media, "media", media)
        self._max_tokens, self._skips = max_prompt_tokens, on_bad_image == "skip"
        self._length_of: Callable[[Prompt], int] | None = None
        self._rows = _Joined([open_rows(each) for each in paths])
        self._eval = {held: _Joined([open_rows(each)]) for held, each in (eval_paths or {}).items()}
        for held, theirs in self.held_rows().items():
            _refuse_shared(held, self.trained_rows(), theirs)
        if check_rows:
            for rows in (self._rows, *self._eval.values()):
                self._check(rows)
        self._shuffle, self._seed = shuffle, seed
        self._fingerprint: list[dict[str, Any]] | None = None
        self._dropped: Counter[str] = Counter()
        self._eval_dropped: dict[str, Counter[str]] = {}

    @cached_property
    def _walk(self) -> Shuffled[int]:
        """Over the rows to train on. Raises ComponentError when there are none."""
        return (Shuffled if self._shuffle else InOrder)(range(len(self._rows)), self._seed)

    def fit(self, length_of: Callable[[Prompt], int]) -> None:
        """See slime_launch.interfaces.Fits."""
        self._length_of = length_of

    def take(self, num_prompts: int) -> list[Prompt]:
        """The next prompts; goes round again when the rows are used up.

        Raises ComponentError when a whole round of rows gives not one prompt.
        """
        taken: list[Prompt] = []
        barren = 0
        while len(taken) < num_prompts:
            # as many as are missing, so that no row is passed that a later call should give
            for found in self._read(self._rows, self._walk.take(num_prompts - len(taken))):
                if isinstance(found, Prompt):
                    taken.append(found)
                    barren = 0
                else:
                    self._dropped[found] += 1
                    barren += 1
            if barren >= len(self._rows):
                raise ComponentError(f"data {self.name}: a whole round gave no prompt; left out: {dict(self._dropped)}")
        return taken

    def eval_sets(self) -> dict[str, list[Prompt]]:
        """The sets of ``eval_paths``; what is left out of training is left out here too, and counted by set."""
        sets: dict[str, list[Prompt]] = {}
        for held, rows in self._eval.items():
            found = list(self._read(rows, range(len(rows))))
            sets[held] = [one for one in found if isinstance(one, Prompt)]
            self._eval_dropped[held] = Counter(one for one in found if isinstance(one, str))
            if not sets[held]:
                raise ComponentError(f"data.eval_paths.{held}: no row gave a prompt; raise max_prompt_tokens")
        return sets

    def trained_rows(self) -> list[FileRows]:
        """See slime_launch.interfaces.OfFiles."""
        return [FileRows(part.file, part.rows) for part in self._rows.parts]

    def held_rows(self) -> dict[str, list[FileRows]]:
        """See slime_launch.interfaces.OfFiles."""
        return {held: [FileRows(part.file, part.rows) for part in rows.parts] for held, rows in self._eval.items()}

    def metrics(self) -> Metrics:
        """Rounds begun so far, from 0, and rows left out, by reason: of the last ``eval_sets``, and of training."""
        held = {
            f"data/{self.name}/eval_dropped_{name}_{reason}": float(count)
            for name, counts in self._eval_dropped.items()
            for reason, count in counts.items()
        }
        dropped = {f"data/{self.name}/dropped_{reason}": float(count) for reason, count in self._dropped.items()}
        epoch = {f"data/{self.name}/epoch": float(self._walk.round)} if len(self._rows) else {}
        return {**epoch, **dropped, **held}

    def state_dict(self) -> dict[str, Any]:
        """Where ``take`` stands, what it left out, and of which content."""
        self._fingerprint = self._fingerprint or self._rows.fingerprint()
        return {"walk": self._walk.state_dict(), "dropped": dict(self._dropped), "files": self._fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises ComponentError, naming the file, when its rows are not those that the state was made of.
        """
        self._fingerprint = self._rows.fingerprint()
        _refuse_changed(state.get("files", []), self._fingerprint)
        self._walk.load_state_dict(state["walk"])
        self._dropped = Counter(state["dropped"])

    def _read(self, rows: _Joined, numbers: Sequence[int]) -> Iterator[Prompt | str]:
        """Prompts, or why a row gives none, in order."""
        drafts = [(number, self._reading.draft(*rows.at(number))) for number in numbers]
        if not any(draft.images for _, draft in drafts):
            yield from (self._fitting(_prompt(draft, ())) for _, draft in drafts)
            return
        with ThreadPoolExecutor(_FETCHERS) as pool:
            for found in pool.map(lambda pair: self._with_images(rows, *pair), drafts):
                yield self._fitting(found) if isinstance(found, Prompt) else found

    def _with_images(self, rows: _Joined, number: int, draft: Draft) -> Prompt | str:
        part, inner = rows.at(number)
        try:
            images = tuple(self._media.load(ref, part.folder) for ref in draft.images)
        except MediaError as error:
            if self._skips:
                return BAD_IMAGE
            raise ComponentError(f"{part.where(inner)}: {error}") from error
        return _prompt(draft, images)

    def _fitting(self, prompt: Prompt) -> Prompt | str:
        if self._max_tokens is None or self._length_of is None:
            return prompt
        return TOO_LONG if self._length_of(prompt) > self._max_tokens else prompt

    def _check(self, rows: _Joined) -> None:
        """Read every row; raises ComponentError with the first few that are malformed."""
        wrong: list[str] = []
        for number in range(len(rows)):
            try:
                self._reading.draft(*rows.at(number))
            except ComponentError as error:
                wrong.append(str(error))
            if len(wrong) == _SHOWN_ROWS:
                break
        if wrong:
            raise ComponentError("\n".join(wrong))


class _Joined:
    """Several files' rows as one sequence."""

    def __init__(self, parts: Sequence[JsonLines | ArrowRows]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def at(self, number: int) -> tuple[JsonLines | ArrowRows, int]:
        """(the file's rows, number there)."""
        for part in self.parts:
            if number < len(part):
                return part, number
            number -= len(part)
        raise IndexError(number)

    def fingerprint(self) -> list[dict[str, Any]]:
        """One a file."""
        return [part.fingerprint() for part in self.parts]


def _prompt(draft: Draft, images: tuple[bytes, ...]) -> Prompt:
    return Prompt(
        messages=draft.messages, label=draft.label, images=images, completion=draft.completion, source=draft.source,
        metadata=draft.metadata, tools=draft.tools, sampling=draft.sampling,
    )  # fmt: skip


def _build(kind: Any, key: str, values: Mapping[str, Any] | None) -> Any:
    try:
        return kind(**(values or {}))
    except (TypeError, ValueError) as error:
        raise ComponentError(f"data.{key}: {str(error).removeprefix(f'{kind.__name__}.__init__() ')}") from error


def _refuse_shared(held: str, trained: Sequence[FileRows], theirs: Sequence[FileRows]) -> None:
    """Rows to train on may not be held out too."""
    for one in theirs:
        for mine in trained:
            if rows := mine.shared(one):
                raise ComponentError(
                    f"data.eval_paths.{held}: rows {rows[0]} to {rows[-1]} of {one.file} are trained on too; "
                    "take slices that do not meet, e.g. [0:-100] and [-100:]"
                )


def _refuse_changed(saved: Sequence[Mapping[str, Any]], mine: Sequence[Mapping[str, Any]]) -> None:
    if len(saved) != len(mine):
        raise ComponentError(f"data: the saved position is of {len(saved)} files and this run has {len(mine)}")
    for old, new in zip(saved, mine, strict=True):
        if old["rows"] != new["rows"]:
            raise ComponentError(
                f"data: {new['file']} has {new['rows']} rows and had {old['rows']} (as {old['file']}) when the run was "
                "saved; give the data that the run had"
            )
        if old["digest"] != new["digest"]:
            raise ComponentError(
                f"data: {new['file']} has other rows than {old['file']} had when the run was saved; give the data that "
                "the run had"
            )
