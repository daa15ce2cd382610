"""One rank that really trains: writes what its tensors take, by the parts of an estimate, for ``test_sizes.py``.

Run as ``python -m tests.slime_launch.sizes_worker <jobs.json> <rank>``; answers go to ``<jobs>.<rank>.answers``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np


def bytes_of(tensors: Iterable[Any]) -> int:
    """Bytes of the distinct storages behind the tensors."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def micro_batches(parts: Any, rows: int, prompt: int, response: int) -> Any:
    """One micro-batch of ``rows`` rows of unshared prompts."""
    import torch

    from tests.components.megatron.helpers import make_sample

    rng = np.random.default_rng(0)
    samples = [
        make_sample(row, 0, rng.integers(16, 112, prompt).tolist(), rng.integers(16, 112, response).tolist())
        for row in range(rows)
    ]
    return parts.batcher.cut(samples, torch.randn(rows), 0, 1)


def kept_bytes(parts: Any, batches: Any, own: set[int]) -> int:
    """What autograd keeps for one micro-batch's backward, the parameters' storages aside."""
    import torch

    storages: dict[int, int] = {}
    alive = []

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            alive.append(tensor)
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        parts.stepper.gradients(batches)
    return sum(storages.values())


def measure(job: dict[str, Any], rank: int) -> dict[str, int]:
    """Build a trainer, take a step, and add up what there is."""
    from components.megatron.trainer import MegatronTrainer

    trainer = MegatronTrainer(**job["settings"], rank=rank)
    try:
        trainer.start({})
        parts = trainer._ready()
        batches = micro_batches(parts, *job["batch"])
        parameters = list(parts.chunks[0].parameters())
        parts.stepper.gradients(batches)
        parts.optimizer.update()
        parts.optimizer.zero_grad()
        megatron = parts.optimizer._megatron
        states = [
            value
            for optimizer in getattr(megatron, "chained_optimizers", [megatron])
            for state in optimizer.optimizer.state.values()
            for value in state.values()
        ]
        buffers = [*parts.chunks[0].buffers, *parts.chunks[0].expert_parallel_buffers]
        return {
            "weights": bytes_of(parameters),
            "gradients": bytes_of(buffer.grad_data for buffer in buffers),
            "optimizer": bytes_of(state for state in states if hasattr(state, "untyped_storage")),
            "kept": kept_bytes(parts, batches, {p.untyped_storage().data_ptr() for p in parameters}),
        }
    finally:
        trainer.stop()


def main(jobs_file: str, rank: int) -> None:
    """Measure the jobs of a file in turn."""
    answers = {name: measure(job, rank) for name, job in json.loads(Path(jobs_file).read_text()).items()}
    Path(f"{jobs_file}.{rank}.answers").write_text(json.dumps(answers))


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main(sys.argv[1], int(sys.argv[2]))
