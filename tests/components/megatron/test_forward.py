"""The training forward and the log-prob forward get their arguments from one builder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from components.megatron.trainer import MegatronTrainer
from tests.components.megatron.helpers import random_samples, trainer_settings, write_random


def described(value: Any) -> Any:
    """A keyword's value as far as two calls can share it."""
    if isinstance(value, dict):
        return {name: described(inner) for name, inner in value.items()}
    return value.sum().item() if isinstance(value, torch.Tensor) else type(value)


def test_both_forwards_get_the_same_keywords(tmp_path: Path) -> None:
    """Images, positions and masks included; the samples of one prompt share rows in both."""
    write_random(tmp_path, "glm_omni")
    trainer = MegatronTrainer(**trainer_settings(tmp_path, "glm_omni", num_minibatches=2, micro_batch_size=4))
    seen: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    try:
        trainer.start({})
        (chunk,) = trainer._ready().chunks
        chunk.register_forward_pre_hook(
            lambda module, args, given: seen[module.training].append(described(given)) or None, with_kwargs=True
        )
        trainer.train(0, random_samples("glm_omni", groups=3))
    finally:
        trainer.stop()
    training, scoring = seen[True], seen[False]
    assert len(training) == len(scoring) > 2
    assert {"input_ids", "position_ids", "attention_mask", "media"} <= set().union(*training)
    assert scoring == training
