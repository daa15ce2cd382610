"""What stock SGLang lacks for encoder disaggregation of a model family: each hook is one gap, and named for it."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

ARCHITECTURES_ENV = "SLIME_LAUNCH_EPD_ARCHITECTURES"
POSITIONS_TARGET = "sglang.srt.multimodal.processors.base_processor.BaseMultimodalProcessor.get_validated_mm_data"
TOKENIZER_TARGET = "sglang.srt.managers.tokenizer_manager.TokenizerManager.init_disaggregation"
TOWER_TARGET = "sglang.srt.model_executor.model_runner.ModelRunner.load_model"
# any entry of SGLang's own list does: the name is only compared with that list
_ACCEPTED = "Qwen2_5_VLForConditionalGeneration"
_TOWERS = ("visual", "vision_tower", "vision_model")
_REFUSAL = (
    "this worker is language-only and takes image embeddings from its encoders alone; "
    "send one request a sample, with text and image_data, while an encoder is up"
)


def allow_architectures(server_args: Any, previous: Callable[[Any], None]) -> None:
    """Let the architectures named in the environment pass SGLang's list of models that may be split."""
    from sglang.srt.arg_groups.model_override_base import model_config_of
    from sglang.srt.arg_groups.overrides import resolving_view

    split = resolving_view(server_args).encoder_only or resolving_view(server_args).language_only
    extra = os.environ.get(ARCHITECTURES_ENV, "").split(",")
    config = model_config_of(server_args).hf_config
    real = config.architectures
    if not split or real[0] not in extra:
        previous(server_args)
        return
    config.architectures = [_ACCEPTED]
    try:
        previous(server_args)
    finally:
        config.architectures = real


def add_positions(output: Any, processor: Any, prompt: Any, embeddings: Any, **meta: Any) -> Any:
    """Give inputs that were built from encoder embeddings the multimodal rotary positions that local ones get."""
    if output.mrope_positions is None:
        grids = {"image_grid_thw": meta.get("img_grid_thw"), "video_grid_thw": meta.get("video_grid_thw")}
        item = SimpleNamespace(model_specific_data={name: grid for name, grid in grids.items() if grid is not None})
        output.mrope_positions, output.mrope_position_delta = processor.compute_mrope_positions(
            output.input_ids, [item]
        )
    return output


def refuse_local_encoding(_: None, manager: Any, **__: Any) -> None:
    """Make a language-only worker answer 400 where it would process the image itself (list bodies, ``n`` > 1)."""
    if not _language_only() or manager.mm_processor is None:
        return

    async def refuse(*_: Any, **__: Any) -> NoReturn:
        raise ValueError(_REFUSAL)

    manager.mm_processor.process_mm_data_async = refuse


def disable_local_tower(_: None, runner: Any, *__: Any, **___: Any) -> None:
    """Make a language-only worker's own vision tower raise when it is called: the last line behind the refusal."""
    if not _language_only():
        return

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise RuntimeError(_REFUSAL)

    for name in _TOWERS:
        if (tower := getattr(runner.model, name, None)) is not None:
            tower.forward = refuse


def _language_only() -> bool:
    from sglang.srt.runtime_context import get_disagg

    return bool(get_disagg().language_only)
