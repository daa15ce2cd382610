"""What a warm start learns from, and how it samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from components.models.practice import OneTurn, sampler
from components.models.qwen3 import tiny
from tests.components.rollout.scripted import ask


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder: Path = tmp_path_factory.mktemp("qwen")
    tiny.write_checkpoint(folder, 1)
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """The likeliest token again and again, up to an end token."""
    ids: list[int] = []
    while len(ids) < count and not (ids and ids[-1] in model.generation_config.eos_token_id):
        with torch.no_grad():
            logits_1SV = model(torch.tensor([prompt + ids])).logits
        ids.append(int(logits_1SV[0, -1].argmax()))
    return ids


def test_prompts_of_any_length_are_sampled_together_as_each_alone(made: tuple[Any, Any]) -> None:
    """At almost no temperature, with an end token that comes early for some."""
    model, tokenizer = made
    prompts = [list(range(20, 20 + length)) for length in (1, 5, 30)]
    alone = [greedy(model, prompt, 10) for prompt in prompts]
    model.generation_config.eos_token_id = [*model.generation_config.eos_token_id, alone[0][2]]
    alone = [greedy(model, prompt, 10) for prompt in prompts]
    assert min(map(len, alone)) < max(map(len, alone))
    assert sampler(model, tokenizer)(prompts, 1e-4, 10) == alone


def test_a_reference_of_one_turn_is_the_completion(made: tuple[Any, Any]) -> None:
    (reference,) = OneTurn(*made).references([ask("2+3", completion="[5]")])
    assert made[1].decode(reference.response_ids) == "[5]<|im_end|>"
    assert reference.loss_mask == [1, 1, 1, 1]
