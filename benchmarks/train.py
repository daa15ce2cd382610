"""Megatron's training step against plain transformers and torch, on the same model, batch and thread count.

    python benchmarks/train.py [steps]

Two processes take turns: ours, the trainer as a run hosts it, and a baseline that is what one would write without it:
transformers' model, one padded batch, logits of the response places alone, log-softmax, the clipped surrogate,
backward, clipped gradients, AdamW with ``foreach=True``. Both in float32, on one thread, from the same weights; the
losses of the first step must agree to 1e-5. Prompts are all different, so nothing is shared and both compute the same
tokens; lengths differ. The last line repeats the largest model with groups of samples that share a prompt, as a GRPO
step has them. The ratio is that of the medians.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

LARGE = {
    "hidden_size": 640, "num_hidden_layers": 16, "num_attention_heads": 10, "num_key_value_heads": 5, "head_dim": 64,
    "intermediate_size": 1920, "vocab_size": 32768, "tie_word_embeddings": True,
}  # fmt: skip
"""100 million parameters."""


@dataclass(frozen=True)
class Case:
    """A model and a batch: ``groups`` prompts of about ``prompt`` tokens with ``size`` responses to each."""

    family: str
    groups: int
    size: int
    prompt: int
    response: int
    shape: Mapping[str, Any] = field(default_factory=dict)


CASES = {
    "tiny qwen3": Case("qwen3", 64, 1, 32, 32),
    "tiny glm_omni, an image a prompt": Case("glm_omni", 64, 1, 32, 32),
    "100 M qwen3": Case("qwen3", 8, 1, 64, 64, LARGE),
    "100 M qwen3, 2 prompts x 4 samples": Case("qwen3", 2, 4, 64, 64, LARGE),
}


def make_batch(case: Case) -> list[Any]:
    """Random samples; the engine's logprobs are zeros, so nothing may stop at the gap."""
    import numpy as np

    from tests.components.megatron.helpers import WITH_IMAGES, image_prompt, make_sample

    rng, samples = np.random.default_rng(0), []
    for group in range(case.groups):
        length = int(rng.integers(case.prompt // 2, case.prompt + 1))
        prompt: list[int] = rng.integers(16, 112, length).tolist()
        media: dict[str, Any] = {}
        if case.family in WITH_IMAGES:
            prompt, media = image_prompt(rng, [(1, 4, 4)], length // 2, case.family)
        for index in range(case.size):
            response = rng.integers(16, 112, int(rng.integers(case.response // 2, case.response + 1))).tolist()
            samples.append(make_sample(group, index, prompt, response, float((group + index) % 3), media=media))
    return samples


def ours(case: Case, folder: str) -> Callable[[], float]:
    """The trainer's step; every sample's advantage is its reward."""
    import torch

    from components.megatron.trainer import MegatronTrainer
    from tests.components.megatron.helpers import trainer_settings

    os.environ["SLIME_LAUNCH_ALLOW_TARGETS"] = "benchmarks,tests"
    settings = trainer_settings(Path(folder), case.family, micro_batch_size=64, logprob_chunk=1024, threads=1)
    settings["algorithm"] = {"_target_": "benchmarks.train.Rewarded"}
    trainer = MegatronTrainer(**settings)
    trainer.start({})
    torch.set_num_threads(1)
    samples, steps = make_batch(case), iter(range(10**9))
    return lambda: trainer.train(next(steps), samples)["train/loss"]


def Rewarded() -> Any:
    """GRPO whose advantages are the rewards, so that a group of one counts."""
    from components.algorithms.grpo import GRPO

    class Plain(GRPO):
        def advantages(self, rewards_N: Any, groups_N: Any, *more: Any) -> Any:
            return rewards_N

    return Plain()


def plain(case: Case, folder: str) -> Callable[[], float]:
    """The same step in transformers and torch."""
    import torch

    from tests.components.megatron.helpers import OPTIM, model_class, tiny_config

    torch.set_num_threads(1)
    model = model_class(tiny_config(case.family)).from_pretrained(folder, dtype=torch.float32).train()
    if hasattr(model.model, "visual"):
        model.model.visual.requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=OPTIM["lr"], betas=(OPTIM["beta1"], OPTIM["beta2"]), eps=OPTIM["eps"], weight_decay=0.0,
        foreach=True,
    )  # fmt: skip
    samples = make_batch(case)
    return partial(plain_step, model, parameters, optimizer, samples)


def plain_step(model: Any, parameters: list[Any], optimizer: Any, samples: list[Any]) -> float:
    """Prompts padded on the left, responses on the right: every response starts at the same column."""
    import torch

    prompt = max(len(sample.prompt_ids) for sample in samples)
    response = max(len(sample.response_ids) for sample in samples)
    ids_BS = torch.zeros(len(samples), prompt + response, dtype=torch.long)
    seen_BS, mask_BR = torch.zeros_like(ids_BS), torch.zeros(len(samples), response)
    for row, sample in enumerate(samples):
        first, last = prompt - len(sample.prompt_ids), prompt + len(sample.response_ids)
        ids_BS[row, first:last] = torch.tensor([*sample.prompt_ids, *sample.response_ids])
        seen_BS[row, first:last] = 1
        mask_BR[row, : len(sample.response_ids)] = torch.tensor(sample.loss_mask).float()
    inputs: dict[str, Any] = {"input_ids": ids_BS, "attention_mask": seen_BS, "logits_to_keep": response + 1}
    if samples[0].media:
        inputs |= {
            name: torch.cat([torch.from_numpy(sample.media[name]) for sample in samples]) for name in samples[0].media
        }
        inputs["mm_token_type_ids"] = (ids_BS == model.config.image_token_id).int()
    else:
        inputs["position_ids"] = (seen_BS.cumsum(-1) - 1).clamp(min=0)
    logits_BRV = model(**inputs, use_cache=False).logits[:, :-1]
    logprobs_BR = logits_BRV.log_softmax(-1).gather(-1, ids_BS[:, prompt:, None])[..., 0]
    ratio_BR = (logprobs_BR - logprobs_BR.detach()).exp()
    advantages_B1 = torch.tensor([[sample.reward] for sample in samples])
    surrogate_BR = torch.minimum(ratio_BR * advantages_B1, ratio_BR.clamp(0.8, 1.2) * advantages_B1)
    loss = -(surrogate_BR * mask_BR).sum() / mask_BR.sum()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    return float(loss.detach())


def serve(make: Callable[[Case, str], Callable[[], float]], case: Case, folder: str, pipe: Any) -> None:
    """One side's process: a step for each message; answers (seconds, loss)."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    step = make(case, folder)
    pipe.send(None)
    while pipe.recv():
        began = time.perf_counter()
        loss = step()
        pipe.send((time.perf_counter() - began, loss))


def compare(case: Case, steps: int) -> tuple[float, float]:
    """Median seconds a step of (ours, plain) after a first one that is not counted."""
    from tests.components.megatron.helpers import write_random

    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        write_random(Path(folder), case.family, **case.shape)
        pipes, took = [], ([], [])  # type: ignore[var-annotated]
        for make in (ours, plain):
            here, there = spawn.Pipe()
            spawn.Process(target=serve, args=(make, case, folder, there), daemon=True).start()
            there.close()  # a side that dies is an EOFError here, no endless wait
            here.recv()
            pipes.append(here)
        for number in range(steps + 1):
            answers = []
            for pipe in pipes:
                pipe.send(True)
                answers.append(pipe.recv())
            if not number and abs(answers[0][1] - answers[1][1]) > 1e-5:
                raise SystemExit(f"the two sides do not compute the same: losses {answers[0][1]} and {answers[1][1]}")
            for kept, (seconds, _) in zip(took, answers, strict=True):
                kept += [seconds] if number else []
        for pipe in pipes:
            pipe.send(False)
    return statistics.median(took[0]), statistics.median(took[1])


def main() -> None:
    """One line a case."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    wanted = sys.argv[2:] or list(CASES)
    for name in wanted:
        mine, theirs = compare(CASES[name], steps)
        print(f"{name}: {mine:.3f} s, plain {theirs:.3f} s: {mine / theirs:.2f}x", flush=True)


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    main()
