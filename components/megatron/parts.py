"""What a started trainer is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from components.megatron.batches import Batcher
    from components.megatron.checkpoint import Checkpoint
    from components.megatron.optim import Optimizer
    from components.megatron.step import Stepper
    from components.megatron.weights import WeightMap
    from slime_launch.interfaces import Algorithm


@dataclass(frozen=True)
class Parts:
    """What ``start`` builds and the other calls use; chunks: the wrapped model, one a virtual pipeline stage."""

    checkpoint: Checkpoint
    algorithm: Algorithm
    chunks: list[Any]
    weights: WeightMap
    optimizer: Optimizer
    batcher: Batcher
    stepper: Stepper
