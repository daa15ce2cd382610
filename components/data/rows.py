"""Rows of data files, read when they are asked for: jsonl, parquet, Hugging Face datasets saved to disk."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from slime_launch.data_files import DataFile
from slime_launch.errors import ComponentError

LONGEST_LINE = 256 * 2**20
"""Bytes of a jsonl row; a longer one is refused."""
_CHUNK = 2**20


class JsonLines:
    """A jsonl file: an index of byte offsets, one line read a row; blank lines do not count.

    file: itself. folder: what paths in its rows count from. rows: numbers of the rows that count.
    Raises ComponentError when the file cannot be read or the slice does not fit.
    """

    def __init__(self, data: DataFile) -> None:
        self._data, self.file, self.folder = data, data.file, data.file.parent
        self._identity = _identity(data.file)
        self._handle = os.open(data.file, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)
        starts_N, lines_N, end = _index(data.file)
        rows = _sliced(data, len(starts_N))
        ends_N = np.append(starts_N[1:], end)
        self._starts_N = starts_N[rows.start : rows.stop]
        self._ends_N = ends_N[rows.start : rows.stop]
        self._lines_N = lines_N[rows.start : rows.stop]
        self.rows = rows

    def __len__(self) -> int:
        """How many rows count."""
        return len(self._starts_N)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        """One row; raises ComponentError naming file and line when it cannot be read."""
        if _identity(self._data.file) != self._identity:
            raise ComponentError(f"{self._data.file} has changed since the run began; leave data files as they are")
        start, end = int(self._starts_N[number]), int(self._ends_N[number])
        if end - start > LONGEST_LINE:
            raise ComponentError(f"{self.where(number)}: longer than {LONGEST_LINE} bytes")
        line = os.pread(self._handle, end - start, start)  # one call: threads may read at once
        try:
            row = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ComponentError(f"{self.where(number)}: not JSON ({error}): {_start_of(line)}") from error
        if not isinstance(row, dict):
            raise ComponentError(f"{self.where(number)}: not a JSON object: {_start_of(line)}")
        return row

    def where(self, number: int) -> str:
        """File and line."""
        return f"{self._data.file}, line {self._lines_N[number]}"

    def fingerprint(self) -> dict[str, Any]:
        """``file``, ``rows`` and ``digest``: of the rows that count alone, so that others may be appended."""
        digest = hashlib.blake2b(digest_size=16)
        with self._data.file.open("rb") as file:
            for start, end in zip(self._starts_N.tolist(), self._ends_N.tolist(), strict=True):
                file.seek(start)
                digest.update(file.read(end - start).strip() + b"\n")
        return {"file": str(self._data), "rows": len(self), "digest": digest.hexdigest()}


class ArrowRows:
    """A parquet file or a folder that ``datasets`` saved; memory-mapped, so that it may be larger than memory.

    file, folder, rows: as JsonLines has them. Images stay encoded.
    Raises ComponentError when it cannot be read or the slice does not fit.
    """

    def __init__(self, data: DataFile) -> None:
        from datasets import Image
        from datasets.exceptions import DatasetGenerationError

        self._data, self.file = data, data.file
        self.folder = data.file if data.file.is_dir() else data.file.parent
        try:
            table = _saved(data.file) if data.file.is_dir() else _parquet(data.file)
        except (OSError, ValueError, DatasetGenerationError) as error:
            raise ComponentError(f"{data.file}: cannot be read ({error.__cause__ or error})") from error
        for name, feature in table.features.items():
            if isinstance(feature, Image):
                table = table.cast_column(name, Image(decode=False))
        self.rows = _sliced(data, len(table))
        self._table = table.with_format(None)

    def __len__(self) -> int:
        """How many rows count."""
        return len(self.rows)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        """One row."""
        row: dict[str, Any] = self._table[self.rows[number]]
        return row

    def where(self, number: int) -> str:
        """File and row, counted from 0."""
        return f"{self._data.file}, row {self.rows[number]}"

    def fingerprint(self) -> dict[str, Any]:
        """``file``, ``rows`` and ``digest``: of all the bytes of the file or the folder."""
        file = self._data.file
        digest = hashlib.blake2b(digest_size=16)
        for part in sorted(file.iterdir()) if file.is_dir() else [file]:
            if part.is_file() and not part.name.startswith("cache-"):  # datasets may leave those behind
                with part.open("rb") as handle:
                    digest.update(hashlib.file_digest(handle, "blake2b").digest())
        return {"file": str(self._data), "rows": len(self), "digest": digest.hexdigest()}


FORMATS: dict[str, Callable[[DataFile], JsonLines | ArrowRows]] = {
    ".jsonl": JsonLines, ".ndjson": JsonLines, ".parquet": ArrowRows,
}  # fmt: skip


def open_rows(text: str) -> JsonLines | ArrowRows:
    """The rows of ``FILE`` or ``FILE[start:stop]``, by the name's ending; a folder is a saved dataset.

    Raises ComponentError when there is no such file, or it is of another format.
    """
    try:
        data = DataFile.parse(text)
    except ValueError as error:
        raise ComponentError(f"{text}: {error}; write FILE[0:1000] or FILE[-100:]") from error
    if not data.file.exists():
        raise ComponentError(f"{data.file}: no such file or folder")
    if data.file.is_dir():
        return ArrowRows(data)
    if (suffix := data.file.suffix.lower()) not in FORMATS:
        known = ", ".join(FORMATS)
        raise ComponentError(f"{data.file}: not one of {known} or a folder that datasets.save_to_disk wrote")
    return FORMATS[suffix](data)


def _saved(folder: Path) -> Any:
    from datasets import Dataset, load_from_disk

    if not (folder / "state.json").is_file():
        parts = sorted(part.parent.name for part in folder.glob("*/state.json"))
        mend = f"name one of its parts: {', '.join(parts)}" if parts else "name a folder that save_to_disk wrote"
        raise ValueError(f"holds no saved dataset; {mend}")
    found = load_from_disk(str(folder))
    if not isinstance(found, Dataset):
        raise ValueError("is not one dataset")
    return found


def _parquet(file: Path) -> Any:
    """Converted once into a memory-mapped Arrow file in the cache folder; the cache knows files by content's age."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slime_launch" / "datasets"
    return Dataset.from_parquet(str(file), cache_dir=str(cache))


def _identity(file: Path) -> tuple[int, int, int]:
    stat = file.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _sliced(data: DataFile, size: int) -> range:
    if not size:
        raise ComponentError(f"{data.file}: holds no row")
    try:
        return data.rows(size)
    except ValueError as error:
        raise ComponentError(str(error)) from error


def _index(file: Path) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """(byte offsets, line numbers from 1, end) of the lines that are not blank; 16 bytes of memory a line."""
    breaks, position, blanks = [], 0, []
    previous_blank = True  # nothing but white space since the last line break
    with file.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            bytes_C = np.frombuffer(chunk, dtype=np.uint8)
            found = np.flatnonzero(bytes_C == ord("\n"))
            ink = np.flatnonzero(bytes_C > ord(" "))
            # a line is blank when no ink lies between its break and the one before
            ink_before = np.searchsorted(ink, found)
            inked = np.diff(ink_before, prepend=0) > 0
            if len(found):
                inked[0] |= not previous_blank
                blanks.append(~inked)
                breaks.append(found + position)
                previous_blank = bool(ink_before[-1] == len(ink))
            else:
                previous_blank &= not len(ink)
            position += len(chunk)
    breaks_L = np.concatenate(breaks) if breaks else np.empty(0, np.int64)
    blank_L = np.append(np.concatenate(blanks) if blanks else np.empty(0, bool), previous_blank)
    starts_L = np.insert(breaks_L + 1, 0, 0)
    kept = np.flatnonzero(~blank_L)
    return starts_L[kept].astype(np.int64), (kept + 1).astype(np.int64), position


def _start_of(line: bytes) -> str:
    text = line.strip().decode(errors="replace")
    return repr(text if len(text) <= 80 else text[:80] + "...")
