"""A tiny Qwen3: the real architecture with random weights, a character tokenizer and a ChatML template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from components.models.tiny import build_tokenizer
from components.models.warm_start import Processor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from slime_launch.types import Prompt

CONFIG = Path(__file__).parent / "configs" / "tiny.json"

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
)
WORDS = ("system", "user", "assistant")

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- "<|im_start|>" + message.role + "\n" -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}{{- part.text -}}{%- endfor -%}
{%- endif -%}
{{- "<|im_end|>\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\n" -}}{%- endif -%}
"""


def _tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(SPECIAL, WORDS, eos="<|im_end|>", pad="<|endoftext|>", chat_template=CHAT_TEMPLATE)


def write_checkpoint(folder: Path, seed: int) -> None:
    """Write a random checkpoint that transformers loads and SGLang serves; the same seed gives the same weights."""
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config.from_dict(json.loads(CONFIG.read_text()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    tokenizer = _tokenizer()
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]),
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=1.0,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class TinyQwen3:
    """The recipe: every weight takes part in the warm start."""

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
        """Nothing to prepare."""
