"""A tiny GLM-Omni: the real GLM-4V architecture with random weights, a character tokenizer and its processor."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from components.models.tiny import build_tokenizer
from components.models.warm_start import Processor, encode
from slime_launch.errors import ComponentError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Glm4vProcessor, PreTrainedModel, PreTrainedTokenizerFast

    from slime_launch.types import Prompt

CONFIG = Path(__file__).parent / "configs" / "tiny.json"

SPECIAL = (
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
MEDIA = SPECIAL[10:]
"""Never sampled: a media token in a response has no media behind it."""
EOS = ("<|endoftext|>", "<|user|>", "<|observation|>")

CHAT_TEMPLATE = """\
[gMASK]<sop>
{%- for message in messages -%}
{{- "<|" + message.role + "|>\n" -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == "image" -%}
{{- "<|begin_of_image|><|image|><|end_of_image|>" -}}
{%- elif part.type == "video" -%}
{{- "<|begin_of_video|><|video|><|end_of_video|>" -}}
{%- else -%}
{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|assistant|>\n" -}}{%- endif -%}
"""

PIXELS = {"shortest_edge": 2 * 28 * 28, "longest_edge": 2 * 28 * 28 * 64}
"""Bounds on frames x height x width of a resized image: 1 to 64 image tokens; 56 x 56 stays and gives 4."""


def _tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(SPECIAL, (), eos="<|endoftext|>", pad="<|endoftext|>", chat_template=CHAT_TEMPLATE)


def _processor() -> Glm4vProcessor:
    from transformers import Glm4vImageProcessor, Glm4vProcessor, Glm4vVideoProcessor

    return Glm4vProcessor(
        image_processor=Glm4vImageProcessor(size=PIXELS),
        tokenizer=_tokenizer(),
        video_processor=Glm4vVideoProcessor(size=PIXELS),
        chat_template=CHAT_TEMPLATE,
    )


def write_checkpoint(folder: Path, seed: int) -> None:
    """Write a random checkpoint that transformers loads and SGLang serves; the same seed gives the same weights."""
    import torch
    from transformers import GenerationConfig, Glm4vConfig, Glm4vForConditionalGeneration

    config = Glm4vConfig.from_dict(json.loads(CONFIG.read_text()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Glm4vForConditionalGeneration(config)
    processor = _processor()
    model.generation_config = GenerationConfig(
        eos_token_id=processor.tokenizer.convert_tokens_to_ids(list(EOS)),
        pad_token_id=processor.tokenizer.pad_token_id,
        suppress_tokens=processor.tokenizer.convert_tokens_to_ids(list(MEDIA)),
        do_sample=True,
        temperature=1.0,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


class TinyGlmOmni:
    """The recipe: the vision tower learns to tell the labels apart, then stays as it is.

    tower_steps, tower_lr, tower_batch: its training, through a linear head that is thrown away.
    """

    def __init__(self, tower_steps: int = 200, tower_lr: float = 3e-3, tower_batch: int = 64) -> None:
        self._steps, self._lr, self._batch = tower_steps, tower_lr, tower_batch

    def write(self, folder: Path, seed: int) -> None:
        """See ``write_checkpoint``."""
        write_checkpoint(folder, seed)

    def prepare(
        self,
        model: PreTrainedModel,
        processor: Processor,
        prompts: Sequence[Prompt],
        seed: int,
    ) -> None:
        """Train the tower on one-image prompts of one size, and freeze it."""
        import torch

        patches_NPF, grid_3, labels_N, num_labels = _pictures(processor, prompts)
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

    if any(len(prompt.images) != 1 for prompt in prompts):
        raise ComponentError(
            "tiny GLM-Omni: the vision tower learns from prompts with one image each; take such a data source"
        )
    inputs = encode(processor, prompts)
    grid_N3 = inputs["image_grid_thw"]
    if (grid_N3 != grid_N3[0]).any():
        raise ComponentError("tiny GLM-Omni: the vision tower learns from images of one size; take such a data source")
    names = sorted({prompt.label for prompt in prompts})
    labels_N = torch.tensor([names.index(prompt.label) for prompt in prompts])
    return inputs["pixel_values"].view(len(prompts), int(grid_N3[0].prod()), -1), grid_N3[0], labels_N, len(names)
