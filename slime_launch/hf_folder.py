"""What a Hugging Face checkpoint folder must hold, read from headers alone: no tensor loaded, no code of it run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")
UNSAFE = ("*.py", "*.bin", "*.pt", "*.pkl")

Fault = tuple[str, str]
"""(what is wrong, what mends it)"""


def folder_faults(folder: Path) -> Iterator[Fault]:
    """Everything wrong with the files of a checkpoint folder, its config.json aside."""
    if not folder.is_dir():
        yield "no such folder", "name a Hugging Face checkpoint folder"
        return
    if not any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        yield "has no safetensors weights", f"it needs {WEIGHTS} or {INDEX}"
    yield from _weight_faults(folder)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        yield "has no tokenizer", "save the tokenizer into the folder"
    for file in sorted(file for pattern in UNSAFE for file in folder.glob(pattern)):
        yield f"holds {file.name}, which would run code when loaded", "keep safetensors and JSON files only"


def _weight_faults(folder: Path) -> Iterator[Fault]:
    index = folder / INDEX
    if not index.is_file():
        names = {WEIGHTS} if (folder / WEIGHTS).is_file() else set()
    else:
        try:
            names = {str(name) for name in json.loads(index.read_text())["weight_map"].values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            yield f"{INDEX} is broken ({error!r})", "save the checkpoint again"
            return
    for name in sorted(names):
        if not (folder / name).is_file():
            yield f"{name} is missing", "copy every shard of the checkpoint"
        elif not _is_whole(folder / name):
            yield f"{name} is cut short or no safetensors file", "copy or save it again"


def _is_whole(file: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            return False
        try:
            header = json.loads(stream.read(length))
            ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
    return bool(size == 8 + length + max(ends, default=0))
