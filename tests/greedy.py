"""Evaluates a checkpoint folder with plain transformers: no engine, no trainer of ours."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from components.rewards.answer import ANSWER, compile_pattern, extract
from slime_launch.targets import instantiate


def greedy_score(folder: Path, rollout: dict[str, Any]) -> float:
    """Share of held-out prompts whose greedy answer is exact. ``rollout``: the rollout actor's args of the plan."""
    data = instantiate(rollout["data"], seed=rollout["seed"])
    prompts = [prompt for prompts in data.eval_sets().values() for prompt in prompts]
    pattern = compile_pattern(ANSWER)
    answers = _generate(folder, prompts, rollout["sampling"]["max_new_tokens"])
    return sum(extract(pattern, a) == p.label for a, p in zip(answers, prompts, strict=True)) / len(prompts)


def _generate(folder: Path, prompts: list[Any], max_new_tokens: int) -> list[str]:
    images = bool(prompts[0].images)
    loader = AutoModelForImageTextToText if images else AutoModelForCausalLM
    model = loader.from_pretrained(folder, dtype=torch.float32).eval()
    processor = (AutoProcessor if images else AutoTokenizer).from_pretrained(folder)
    answers = []
    for prompt in prompts:  # one at a time: no padding, so nothing but the weights decides
        text = processor.apply_chat_template(prompt.messages, tokenize=False, add_generation_prompt=True)
        media = {"images": [Image.open(io.BytesIO(data)).convert("RGB") for data in prompt.images]} if images else {}
        inputs = processor(text=[text], return_tensors="pt", add_special_tokens=False, **media)
        made = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        tail = made[0, inputs["input_ids"].shape[1] :]
        answers.append(processor.decode(tail, skip_special_tokens=True))
    return answers
