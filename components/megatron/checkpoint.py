"""Hugging Face checkpoints on disk: read tensor by tensor, written whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_launch.errors import ComponentError
from slime_launch.manifest import to_disk

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
KEPT_SUFFIXES = (".json", ".jinja", ".txt", ".model")
"""Files beside the weights that a saved checkpoint takes over: config, tokenizer, processor, template, generation."""
BUFFERS = ".rotary_emb.inv_freq"
"""End of the names under which transformers up to 4.31 stored what follows from config.json; not read."""
SHARD_BYTES = 4 * 2**30


class Checkpoint:
    """The safetensors of one folder; a tensor is read when it is asked for."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config = self._json("config.json")
        self._open_files: dict[str, Any] = {}
        self._files = self._weight_map()

    @property
    def names(self) -> frozenset[str]:
        """Every tensor's name."""
        return frozenset(self._files)

    def get(self, name: str) -> Tensor:
        """One full tensor, as stored."""
        tensor: Tensor = self._open(self._files[name]).get_tensor(name)
        return tensor

    def _json(self, name: str) -> dict[str, Any]:
        try:
            loaded: dict[str, Any] = json.loads((self.folder / name).read_text())
        except (OSError, ValueError) as error:
            raise ComponentError(f"checkpoint {self.folder}: {name} cannot be read: {error}") from error
        return loaded

    def _weight_map(self) -> dict[str, str]:
        if (self.folder / INDEX).is_file():
            files: dict[str, str] = self._json(INDEX)["weight_map"]
        else:
            files = dict.fromkeys(self._open(SINGLE).keys(), SINGLE)
        return {name: file for name, file in files.items() if not name.endswith(BUFFERS)}

    def _open(self, file: str) -> Any:
        from safetensors import SafetensorError, safe_open

        if file not in self._open_files:
            try:
                self._open_files[file] = safe_open(str(self.folder / file), framework="pt")
            except (OSError, SafetensorError) as error:
                raise ComponentError(f"checkpoint {self.folder}: {file} cannot be read: {error}") from error
        return self._open_files[file]


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill that takes ``target``'s place only when the block ends well."""
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (target.with_name(f".{target.name}.{kind}") for kind in ("new", "old"))
    _take_back(old, target)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        yield fresh
        for path in (*fresh.iterdir(), fresh):
            to_disk(path)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
        to_disk(target.parent)
    finally:
        _take_back(old, target)
        shutil.rmtree(fresh, ignore_errors=True)


def _take_back(old: Path, target: Path) -> None:
    """Whatever came between the two renames: one of them stays."""
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def write_checkpoint(folder: Path, source: Checkpoint, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write tensors, each in the dtype that it has in ``source``, and take the other files over from there."""
    from safetensors.torch import save_file

    for file in source.folder.iterdir():
        if file.suffix in KEPT_SUFFIXES and file.name != INDEX:
            shutil.copyfile(file, folder / file.name)
    weight_map: dict[str, int] = {}
    total = count = 0
    for count, shard in enumerate(_shards(tensors, source), start=1):
        save_file(shard, str(folder / f"shard-{count}"), metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, count)
        total += sum(tensor.nbytes for tensor in shard.values())
    _name_shards(folder, weight_map, count, total)


def _shards(tensors: Iterable[tuple[str, Tensor]], source: Checkpoint) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        # A copy: safetensors refuses tensors that share memory, and weights go on training.
        stored = tensor.detach().cpu().to(source.get(name).dtype, copy=True).contiguous()
        if shard and size + stored.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = stored
        size += stored.nbytes
    yield shard


def _name_shards(folder: Path, weight_map: dict[str, int], count: int, total: int) -> None:
    def named(number: int) -> str:
        return SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"

    for number in range(1, count + 1):
        (folder / f"shard-{number}").rename(folder / named(number))
    if count > 1:
        index = {"metadata": {"total_size": total}, "weight_map": {name: named(n) for name, n in weight_map.items()}}
        (folder / INDEX).write_text(json.dumps(index, indent=2))
