"""Megatron's distributed checkpoint format (torch_dist): written beside training, read into any layout.

Imports Megatron. Megatron-Core 0.16.1 writes asynchronously in a forked child. A fork of a process with gloo's, Ray's
or CUDA's threads may hang, so the same writer runs in a thread here, from a copy of the tensors that lives as long as
the writing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from queue import Queue, SimpleQueue
from threading import Thread
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedBase
from megatron.core.dist_checkpointing.serialization import load_sharded_metadata
from megatron.core.dist_checkpointing.state_dict_utils import load_preprocess
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.state_dict_saver import save_state_dict_async_finalize
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from torch.distributed.checkpoint.api import CheckpointException

from slime_launch import manifest
from slime_launch.errors import ComponentError
from slime_launch.fail_points import FailPoint, pass_by
from slime_launch.manifest import Manifest

FILES_PER_RANK = 2
_FORMAT = ("torch_dist", 1)
_LISTED = 3

Tree = dict[str, Any]
"""Nested; its leaves are Megatron's ShardedTensor and ShardedObject, or plain values that are equal on every rank."""


class Writing:
    """One checkpoint being written. Collective: every rank makes one, and finishes it, in the same order.

    On return of the constructor the values are copied and training may go on.
    Raises ComponentError when Megatron or the disk refuses.
    """

    def __init__(self, folder: Path, tree: Tree) -> None:
        self._folder = folder
        self._error: str | None = None
        self._written: Manifest = {}
        # Megatron would start a process for this queue, and keep it.
        filesystem_async._results_queue = SimpleQueue()
        try:
            self._request = dist_checkpointing.save(
                tree, str(folder), sharded_strategy=_Copying(*_FORMAT, thread_count=FILES_PER_RANK),
                async_sharded_save=True,
            )  # fmt: skip
        except (CheckpointingException, OSError, RuntimeError) as error:
            raise ComponentError(f"checkpoint {folder}: cannot be written: {_first_line(error)}") from error
        pass_by(FailPoint.SAVE_BEGUN)
        self._thread = Thread(target=self._write, name="checkpoint", daemon=True)
        self._thread.start()

    def finish(self, wait: bool) -> Manifest | None:
        """Collective. The files of all ranks once all are written and indexed; None while a rank writes, unless
        ``wait``.

        Raises ComponentError on every rank when one could not write.
        """
        if wait:
            self._thread.join()
        everywhere: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, (self._thread.is_alive(), self._error, self._written))
        if errors := [f"rank {rank}: {error}" for rank, (_, error, _) in enumerate(everywhere) if error]:
            raise ComponentError(f"checkpoint {self._folder}: cannot be written: {'; '.join(errors)}; make room there")
        if any(alive for alive, _, _ in everywhere):
            return None
        pass_by(FailPoint.SAVE_WRITTEN)
        for finalize in self._request.finalize_fns:
            finalize()
        written = {name: entry for _, _, part in everywhere for name, entry in part.items()}
        rest = sorted(set(os.listdir(self._folder)) - written.keys()) if dist.get_rank() == 0 else []
        return written | manifest.measure(self._folder, rest)

    def _write(self) -> None:
        try:
            if self._request.async_fn is not None:
                self._request.async_fn(self._note)
        except Exception as error:
            self._error = f"{type(error).__name__}: {error}"

    def _note(self, name: str) -> None:
        self._written |= manifest.measure(self._folder, [name])
        pass_by(FailPoint.SAVE_HALF)


class _Copying(TorchDistSaveShardedStrategy):  # type: ignore[misc]
    """Megatron's strategy up to the writing, which takes a copy of the tensors and runs where it is called."""

    def _get_save_and_finalize_callbacks(self, writer: FileSystemWriterAsync, planned: tuple[Any, ...]) -> AsyncRequest:
        copied = [
            (path, name, (objects, [(item, tensor.to("cpu", copy=True)) for item, tensor in tensors]))
            for path, name, (objects, tensors) in writer.write_buckets
        ]
        return AsyncRequest(partial(_write, writer, copied), (), [partial(save_state_dict_async_finalize, *planned)])


def _write(writer: FileSystemWriterAsync, buckets: list[Any], note: Callable[[str], None]) -> None:
    """Write each bucket to its file and wait for the disk; ``note`` is told each file's name."""
    results = {}
    for number, bucket in enumerate(buckets):
        answers: SimpleQueue[Any] = SimpleQueue()
        under_way: Queue[int] = Queue()
        under_way.put(number)
        writer.write_preloaded_data([writer.transforms], number, bucket, answers, under_way, use_fsync=True)
        answer = answers.get_nowait()[1]
        if isinstance(answer, Exception):
            raise answer
        results[number] = answer
        note(bucket[1])
    buckets.clear()
    if writer.results_queue is not None:
        writer.results_queue.put(results)


def check(folder: Path) -> None:
    """Collective. Raises ComponentError on every rank unless the folder is whole, unaltered and only ours.

    To be called before anything is read from it: the format is pickle, and reading it runs what it says.
    """
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, _fault(folder, dist.get_rank(), len(everywhere)))
    if faults := sorted({fault for fault in everywhere if fault}):
        raise ComponentError(
            f"checkpoint {folder} is not read: {'; '.join(faults)}; remove it, and resume=auto takes the one before it"
        )


def _fault(folder: Path, rank: int, ranks: int) -> str | None:
    """What is wrong with a checkpoint; each rank reads every ``ranks``-th file."""
    try:
        entries = manifest.read(folder)
    except (manifest.TornError, manifest.ForeignError, OSError) as error:
        return str(error)
    altered = manifest.altered(folder, {name: entries[name] for name in sorted(entries)[rank::ranks]})
    return f"{', '.join(altered)} changed since it was written" if altered else None


def read_common(folder: Path) -> Tree:
    """The plain values of a checkpoint that ``check`` let pass."""
    common: Tree = dist_checkpointing.load_common_state_dict(str(folder))
    return common


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Key -> whole shape of every tensor of a checkpoint that ``check`` let pass."""
    found = load_sharded_metadata(str(folder)).values()
    return {shard.key: tuple(shard.global_shape) for shard in found if hasattr(shard, "global_shape")}


def read(folder: Path, tree: Tree, ignore: Iterable[str] = ()) -> Tree:
    """Collective. A checkpoint that ``check`` let pass, in the layout of ``tree``, whose tensors are overwritten.

    ignore: beginnings of keys that the checkpoint may hold beyond the tree's.
    Raises ComponentError when keys, found before anything is overwritten, or shapes differ.
    """
    _require_same_keys(folder, tree, tuple(ignore))
    try:
        loaded: Tree = dist_checkpointing.load(tree, str(folder))
    except (CheckpointingException, CheckpointException, RuntimeError, ValueError, KeyError) as error:
        raise ComponentError(f"checkpoint {folder}: does not fit this model: {_first_line(error)}") from error
    return loaded


def _require_same_keys(folder: Path, tree: Tree, ignore: tuple[str, ...]) -> None:
    everywhere: list[Any] = [None] * dist.get_world_size()
    leaves = nested_values(load_preprocess(tree)[0])
    dist.all_gather_object(everywhere, {leaf.key for leaf in leaves if isinstance(leaf, ShardedBase)})
    wanted = set().union(*everywhere)
    saved = {shard.key for shard in load_sharded_metadata(str(folder)).values()}
    beyond = {key for key in saved - wanted if not key.startswith(ignore)}
    if beyond or wanted - saved:
        raise ComponentError(
            f"checkpoint {folder}: does not fit this model: it lacks {_some(wanted - saved)} and has {_some(beyond)} "
            "beyond it; give the model and model.freeze that it was made with"
        )


def _some(keys: Iterable[str]) -> str:
    listed = sorted(keys)
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return (", ".join(listed[:_LISTED]) or "nothing") + more


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
