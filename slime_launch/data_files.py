"""Files that data nodes name: how they are written, and where they are.

Below a data node ``path`` is a file or folder, or a list of them, ``eval_paths`` names such by held-out set, and
``roots`` lists folders. They count from the folder that the launcher is started in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SLICED = re.compile(r"(?P<file>.+)\[(?P<start>-?\d*):(?P<stop>-?\d*)\]")
_LONG = 2**48
"""More rows than a file has."""
PATH_KEYS = ("path", "eval_paths", "roots")


@dataclass(frozen=True)
class DataFile:
    """A file or folder, and the rows of it that count: ``a.jsonl``, ``a.jsonl[0:1000]``, ``a.jsonl[-100:]``."""

    file: Path
    start: int | None = None
    stop: int | None = None

    @classmethod
    def parse(cls, text: str) -> DataFile:
        """Read it; ``[start:stop]`` behind the name is a slice as Python's.

        Raises ValueError when the brackets hold something else.
        """
        found = _SLICED.fullmatch(text)
        if found is None:
            if text.endswith("]") and "[" in text and not Path(text).expanduser().exists():
                raise ValueError(f"{text[text.rindex('[') :]} is not [start:stop] of whole numbers")
            return cls(Path(text).expanduser())
        start, stop = (int(found[name]) if found[name] else None for name in ("start", "stop"))
        return cls(Path(found["file"]).expanduser(), start, stop)

    def rows(self, size: int) -> range:
        """Numbers of the rows that count, of a file of ``size`` rows.

        Raises ValueError when the slice reaches beyond the file, or holds no row.
        """
        for bound in (self.start, self.stop):
            if bound is not None and not -size <= bound <= size:
                raise ValueError(f"{self} reaches beyond its {size} rows")
        found = range(size)[self.start : self.stop]
        if not found:
            raise ValueError(f"{self} holds no row; the file has {size}")
        return found

    def __str__(self) -> str:
        start, stop = ("" if bound is None else bound for bound in (self.start, self.stop))
        return str(self.file) + ("" if (start, stop) == ("", "") else f"[{start}:{stop}]")

    def surely_meets(self, other: DataFile) -> bool:
        """Whether both take a row in common, of files of any size; False where that depends on the size."""
        if not (self.file.exists() and other.file.exists() and self.file.samefile(other.file)):
            return False
        slices = [(one.start or None, one.stop) for one in (self, other)]
        if (None, None) in slices:
            return True
        if len({bound < 0 for pair in slices for bound in pair if bound is not None}) > 1:
            return False
        mine, theirs = (range(_LONG)[start:stop] for start, stop in slices)
        return max(mine.start, theirs.start) < min(mine.stop, theirs.stop)


@dataclass(frozen=True)
class FileRows:
    """Rows of a file that is open: ``rows`` are their numbers."""

    file: Path
    rows: range

    def shared(self, other: FileRows) -> range:
        """Numbers of the rows that both take."""
        if not self.file.samefile(other.file):
            return range(0)
        return range(max(self.rows.start, other.rows.start), min(self.rows.stop, other.rows.stop))


def named_paths(node: Mapping[str, Any], key: str) -> Iterator[tuple[str, str]]:
    """(key, value) of every path that a data node names, at any depth."""
    found: list[tuple[str, str]] = []

    def note(at: str, text: str) -> str:
        found.append((at, text))
        return text

    _walk(node, key, note)
    return iter(found)


def absolute(node: Mapping[str, Any]) -> dict[str, Any]:
    """The same node, its paths absolute: actors do not work in the folder that the launcher is started in."""
    return dict(_walk(node, "", _absolute))


def _absolute(key: str, text: str) -> str:
    return str(Path(text).expanduser().absolute())


def _walk(value: Any, key: str, change: Callable[[str, str], str], named: bool = False) -> Any:
    """A copy with each path changed; ``named``: below one of PATH_KEYS."""
    if isinstance(value, Mapping):
        return {
            name: _walk(inner, f"{key}.{name}", change, named or name in PATH_KEYS) for name, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_walk(inner, f"{key}[{number}]", change, named) for number, inner in enumerate(value)]
    return change(key, value) if named and isinstance(value, str) else value
