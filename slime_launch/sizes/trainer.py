"""The trainer's memory: Megatron's mixed-precision bookkeeping over the worst rank of a layout."""

from __future__ import annotations

from collections.abc import Sequence

from slime_launch.sizes.activations import Activations, Batch, Recompute, activations
from slime_launch.sizes.memory import (
    PRECISIONS,
    Layout,
    Memory,
    Precision,
    is_frozen,
    local_size,
    stage_tensors,
)
from slime_launch.sizes.parameters import Parameters, Tensor


def trainer_bytes(
    parameters: Parameters,
    layout: Layout,
    *,
    precision: str = "fp32",
    batch: Batch | None = None,
    frozen: Sequence[str] = (),
    train_only: Sequence[str] = (),
    distributed_optimizer: bool = False,
    recompute: Recompute = "none",
    fixed: int = 0,
) -> Memory:
    """Bytes of the trainer rank that needs most.

    Each trained number costs, in Megatron's distributed-data-parallel wrapper with Adam: fp32 4 weight + 4 gradient +
    8 moments = 16 bytes; bf16 2 + 4 (float32 main gradient) + 4 (float32 main weight) + 8 = 18, as in Megatron-LM's
    table of the distributed optimizer (docs/source/api-guide/dist_optimizer.md), which divides the last 8 or 12 by the
    data-parallel size. A frozen number costs its weight alone. Not counted: the buffer of a weight export
    (``trainer.bucket_mb``) and the temporaries of the update itself.

    precision: a row of ``PRECISIONS``. batch: a micro-batch; None leaves the activations out. frozen:
    ``model.freeze``. train_only: ``model.train_only``. fixed: what the process takes besides, in bytes.
    """
    numbers = PRECISIONS[precision]
    stages = [
        _stage(parameters, stage, layout, numbers, frozen, train_only, distributed_optimizer, batch, recompute, fixed)
        for stage in range(layout.pp)
    ]
    return max(stages, key=lambda memory: memory.total)


def _stage(
    parameters: Parameters,
    stage: int,
    layout: Layout,
    precision: Precision,
    frozen: Sequence[str],
    train_only: Sequence[str],
    distributed_optimizer: bool,
    batch: Batch | None,
    recompute: Recompute,
    fixed: int,
) -> Memory:
    held = trained = owned = 0
    for prefix, tensors in stage_tensors(parameters, stage, layout):
        for tensor in tensors:
            size = _on_rank(parameters, tensor, layout)
            held += size
            if not is_frozen(prefix + tensor.name, frozen, train_only):
                trained += size
                owned += -(-size // _owners(tensor, layout)) if distributed_optimizer else size
    kept = Activations(kept=0, working=0)
    if batch is not None:
        kept = activations(parameters.shape, batch, layout, precision, stage, recompute)
    return Memory(
        weights=held * precision.weights,
        gradients=trained * precision.gradients,
        optimizer=owned * precision.optimizer,
        activations=kept.total,
        fixed=fixed,
    )


def _on_rank(parameters: Parameters, tensor: Tensor, layout: Layout) -> int:
    # The engine splits towers, the trainer never does.
    if tensor.name.startswith("encoders."):
        return tensor.size
    return local_size(tensor, layout, parameters.shape.kv_heads)


def _owners(tensor: Tensor, layout: Layout) -> int:
    """Ranks that share one tensor's optimizer state."""
    replicas = layout.dp * layout.cp
    return max(replicas // layout.ep, 1) if tensor.split == "experts" else replicas
