"""What training goes on with, as one tree of shards: weights, optimizer, place in the schedule, random generators."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.tensor_parallel import get_cuda_rng_tracker

from components.megatron.critic import value_heads
from components.megatron.dist_checkpoint import Tree, check, read, read_common, shapes
from components.megatron.optim import Optimizer
from slime_launch.errors import ComponentError

# One key a layer: layers may differ, and some of them may be frozen.
METADATA = {
    "non_homogeneous_layers": True,
    "chained_optim_avoid_prefix": True,
    # Of the distributed optimizer's formats the one that loads into another layout.
    "distrib_optim_sharding_type": "fully_reshardable",
}
OPTIMIZER_KEYS, RNG_KEY = "optimizer.", "rng"


@dataclass(frozen=True)
class Layout:
    """Parallel sizes of the world that wrote a checkpoint."""

    tp: int
    pp: int
    dp: int
    cp: int = 1  # which older checkpoints do not name


def layout() -> Layout:
    """This world's."""
    return Layout(
        tp=parallel_state.get_tensor_model_parallel_world_size(),
        pp=parallel_state.get_pipeline_model_parallel_world_size(),
        dp=parallel_state.get_data_parallel_world_size(),
        cp=parallel_state.get_context_parallel_world_size(),
    )


def shards(chunks: Sequence[Any], optimizer: Optimizer, device: str) -> Tree:
    """Everything of this rank. ``chunks``: the wrapped model, one a virtual pipeline stage."""
    weights = _weights(chunks)
    tree = {"model": weights, "updates": optimizer.updates, "layout": asdict(layout()), RNG_KEY: _rng_shard(device)}
    if optimizer.updates:
        tree["optimizer"] = optimizer.shards(weights, METADATA)
    return tree


def restore(
    folder: Path, chunks: Sequence[Any], optimizer: Optimizer, device: str, weights_only: bool
) -> tuple[int, bool]:
    """Collective. Take the state from a checkpoint folder of whatever layout, or its weights alone.

    A critic may take an actor's weights; its value head is then drawn anew.
    Returns (updates done, whether the random generators were restored: their states belong to one layout).
    Raises ComponentError when the folder may not be read or does not fit.
    """
    check(folder)
    common = read_common(folder)
    updates, same_layout = int(common["updates"]), Layout(**common["layout"]) == layout()
    weights = _weights(chunks)
    absent = _drop_absent_heads(folder, chunks, weights)
    if absent and not weights_only:
        raise ComponentError(f"checkpoint {folder}: is an actor's, of which a critic takes the weights alone")
    tree: Tree = {"model": weights}
    if not weights_only:
        if updates:
            tree["optimizer"] = optimizer.shards(weights, METADATA, loading=True)
        if same_layout:
            tree[RNG_KEY] = _rng_shard(device)
    loaded = read(folder, tree, ignore=(RNG_KEY, OPTIMIZER_KEYS, *absent) if weights_only else (RNG_KEY,))
    for number, chunk in enumerate(chunks):
        chunk.module.load_state_dict(loaded["model"][str(number)], strict=not absent)
    if weights_only:
        optimizer.reload()
        return 0, False
    optimizer.restore(loaded.get("optimizer"), updates)
    if same_layout:
        _set_generators(loaded[RNG_KEY], device)
    return updates, same_layout


def _weights(chunks: Sequence[Any]) -> Tree:
    return {str(number): chunk.module.sharded_state_dict(metadata=METADATA) for number, chunk in enumerate(chunks)}


def _drop_absent_heads(folder: Path, chunks: Sequence[Any], weights: Tree) -> tuple[str, ...]:
    """Collective. Take value heads that a checkpoint lacks out of ``weights`` and draw them anew; their keys."""
    mine = [_drop_absent(folder, chunk, weights[str(number)]) for number, chunk in enumerate(chunks)]
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, [key for keys in mine for key in keys])
    return tuple(sorted({key for keys in everywhere for key in keys}))


def _drop_absent(folder: Path, chunk: Any, weights: Tree) -> list[str]:
    heads = value_heads(chunk.module)
    if not heads:
        return []
    saved = shapes(folder)
    ours = {id(parameter) for head in heads for parameter in head.parameters()}
    named = [name for name, parameter in chunk.module.named_parameters() if id(parameter) in ours]
    absent = [name for name in named if saved.get(weights[name].key) != tuple(weights[name].global_shape)]
    keys = [weights.pop(name).key for name in absent]
    for head in heads if keys else ():
        head.reset()
    return keys


def _rng_shard(device: str) -> ShardedObject:
    """The generators' states of this rank; every rank has its own."""
    states = {name: get() for name, (get, _) in _generators(device).items()}
    return ShardedObject(RNG_KEY, states, (dist.get_world_size(),), (dist.get_rank(),), replica_id=0)


def _set_generators(states: dict[str, Any], device: str) -> None:
    for name, (_, set_state) in _generators(device).items():
        set_state(states[name])


def _generators(device: str) -> dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """How the state of each generator of this process is read and set."""
    tracker, on_device = get_cuda_rng_tracker(), torch.get_device_module(device)
    found: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
        "python": (random.getstate, random.setstate),
        "numpy": (np.random.get_state, np.random.set_state),
        "torch": (torch.get_rng_state, torch.set_rng_state),
        "megatron": (tracker.get_states, tracker.set_states),
    }
    if hasattr(on_device, "get_rng_state"):
        found["device"] = (on_device.get_rng_state, on_device.set_rng_state)
    return found
