"""Checkpoints of random weights, and trainers on them that are stopped after the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from components.megatron.trainer import MegatronTrainer
from tests.components.megatron.helpers import (
    trainer_settings,
    write_random,
)

Start = Callable[..., MegatronTrainer]
ODD_QWEN = {"vocab_size": 113, "tie_word_embeddings": True, "num_hidden_layers": 3, "num_key_value_heads": 4}
ODD_GLM = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 96,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 500.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [1, 1, 2],
    },
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    wanted = {"qwen3": {}, "qwen3-odd": ODD_QWEN, "glm_omni": {}, "glm_omni-odd": ODD_GLM}
    return {name: write_random(root / name, name.partition("-")[0], **shape) for name, shape in wanted.items()}


@pytest.fixture
def start(folders: dict[str, Path]) -> Iterator[Start]:
    running: list[MegatronTrainer] = []

    def begin(name: str, needs: dict[str, Any] | None = None, **overrides: Any) -> MegatronTrainer:
        family = overrides.pop("family", name.partition("-")[0])
        trainer = MegatronTrainer(**trainer_settings(folders[name], family, **overrides))
        running.append(trainer)
        trainer.start(needs or {})
        return trainer

    yield begin
    for trainer in running:
        trainer.stop()
