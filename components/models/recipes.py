"""Recipes of tiny checkpoints that families share: text alone, and a vision tower that learns first."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.models.practice import Processor, encode
from slime_launch.errors import ComponentError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from slime_launch.types import Prompt

CHATML = """\
{%- for message in messages -%}
{%- set tool = message.role == "tool" -%}
{{- "<|im_start|>" + ("user" if tool else message.role) + "\n" -}}
{{- "<tool_response>\n" if tool -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}{{- part.text -}}{%- endfor -%}
{%- endif -%}
{{- "\n</tool_response>" if tool -}}
{{- "<|im_end|>\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\n" -}}{%- endif -%}
"""
"""Qwen's chat template without the list of tools and default system prompt; each tool's answer is a turn."""
ROLES = ("system", "user", "assistant")
"""Role names are words of the text in these templates; one token each."""

GLM_SPECIAL = (
    "<|endoftext|>",
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
    "<|image|>",
    "<|video|>",
)
"""Special tokens of GLM-4 and GLM-4V, by id; those of media come last."""


def write_checkpoint(
    folder: Path, seed: int, config_file: Path, processor: Processor, eos: Sequence[str], media: Sequence[str] = ()
) -> None:
    """Write a random checkpoint that transformers loads and SGLang serves; the same seed gives the same weights.

    config_file: a whole config.json. eos: tokens that end a response. media: tokens that are never sampled, since one
    in a response has no media behind it.
    """
    import torch
    import transformers

    config = json.loads(config_file.read_text())
    model_class = getattr(transformers, config["architectures"][0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(model_class.config_class.from_dict(config))
    tokenizer: Any = getattr(processor, "tokenizer", processor)
    suppressed = {"suppress_tokens": tokenizer.convert_tokens_to_ids(list(media))} if media else {}
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=tokenizer.convert_tokens_to_ids(list(eos)),
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=1.0,
        **suppressed,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


class TextRecipe:
    """The recipe of a model of text: every weight takes part in the warm start."""

    def write(self, folder: Path, seed: int) -> None:
        """Write a complete Hugging Face checkpoint with random weights."""
        raise NotImplementedError

    def prepare(self, model: PreTrainedModel, processor: Processor, prompts: Sequence[Prompt], seed: int) -> None:
        """Nothing to prepare."""


class TowerRecipe(TextRecipe):
    """The recipe of an image model: its vision tower learns to tell the labels apart, then stays as it is.

    tower_steps, tower_lr, tower_batch: its training, through a linear head that is thrown away.
    """

    def __init__(self, tower_steps: int = 200, tower_lr: float = 3e-3, tower_batch: int = 64) -> None:
        self._steps, self._lr, self._batch = tower_steps, tower_lr, tower_batch

    def prepare(self, model: PreTrainedModel, processor: Processor, prompts: Sequence[Prompt], seed: int) -> None:
        """Train the tower on the prompts that have an image, one each and all of one size, and freeze it."""
        import torch

        patches_NPF, grid_3, labels_N, num_labels = _pictures(
            processor, [prompt for prompt in prompts if prompt.images]
        )
        tower = model.model.visual
        num_tokens = int(grid_3.prod()) // tower.spatial_merge_size**2
        head = torch.nn.Linear(num_tokens * tower.config.out_hidden_size, num_labels)
        adam = torch.optim.Adam([*tower.parameters(), *head.parameters()], lr=self._lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(adam, self._lr_share)
        for step in range(self._steps):
            rows_B = torch.randint(len(labels_N), (self._batch,))
            seen = tower(patches_NPF[rows_B].flatten(0, 1), grid_thw=grid_3.expand(self._batch, 3)).pooler_output
            loss = torch.nn.functional.cross_entropy(head(seen.view(self._batch, -1)), labels_N[rows_B])
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
            adam.step()
            schedule.step()
            if (step + 1) % 50 == 0:
                print(f"vision tower: step {step + 1}, loss {loss.item():.3f}", flush=True)
        tower.requires_grad_(False)

    def _lr_share(self, step: int) -> float:
        """Twenty steps up, then a cosine down to zero."""
        return min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / self._steps))


def _pictures(processor: Processor, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor, Tensor, int]:
    """Patches [N, P, F], the grid (frames, height, width) all images share, label numbers [N] and how many labels."""
    import torch

    if not prompts or any(len(prompt.images) != 1 for prompt in prompts):
        raise ComponentError(
            "tiny checkpoint: the vision tower learns from prompts with one image each; take such a data source"
        )
    inputs = encode(processor, prompts)
    grid_N3 = inputs["image_grid_thw"]
    if (grid_N3 != grid_N3[0]).any():
        raise ComponentError(
            "tiny checkpoint: the vision tower learns from images of one size; take such a data source"
        )
    names = sorted({prompt.label for prompt in prompts})
    labels_N = torch.tensor([names.index(prompt.label) for prompt in prompts])
    return inputs["pixel_values"].view(len(prompts), int(grid_N3[0].prod()), -1), grid_N3[0], labels_N, len(names)
