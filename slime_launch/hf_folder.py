"""What a Hugging Face checkpoint folder must hold, read from headers alone: no tensor loaded, no code of it run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
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
    index, shards = folder / INDEX, {WEIGHTS: set[str]()} if (folder / WEIGHTS).is_file() else {}
    if index.is_file():
        if shards:
            yield f"holds both {WEIGHTS} and {INDEX}, and readers differ in which they take", "remove the stale one"
        try:
            shards = _shards(json.loads(index.read_text())["weight_map"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            yield f"{INDEX} is broken ({error!r})", "save the checkpoint again"
            return
    for name, listed in sorted(shards.items()):
        if not (folder / name).is_file():
            yield f"{name} is missing", "copy every shard of the checkpoint"
        elif (held := _names(folder / name)) is None:
            yield f"{name} is cut short or no safetensors file", "copy or save it again"
        elif lacking := sorted(listed - held):
            yield f"{INDEX} lists {lacking[0]} in {name}, which does not hold it", "copy index and shards of one save"


def _shards(weight_map: Mapping[str, str]) -> dict[str, set[str]]:
    """Shard -> the names that an index lists in it."""
    shards: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        shards.setdefault(str(shard), set()).add(name)
    return shards


def _names(file: Path) -> set[str] | None:
    """What a safetensors file holds; None unless it is as long as its header says."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            return None
        try:
            tensors = {name: entry for name, entry in json.loads(stream.read(length)).items() if name != "__metadata__"}
            ends = [int(entry["data_offsets"][1]) for entry in tensors.values()]
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
    return set(tensors) if size == 8 + length + max(ends, default=0) else None
