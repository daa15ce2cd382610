"""A spec -> this rank's model. Imports Megatron."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from components.megatron.config import ModelConfig
from components.megatron.weights import LAYER
from components.models.base import Encoder, ModelProvider
from components.models.decoder import DecoderModel
from slime_launch.errors import ComponentError
from slime_launch.targets import instantiate

EXPERT = re.compile(r"(?<=\.mlp\.experts\.local_experts\.)\d+(?=\.)")


@dataclass(frozen=True)
class Built:
    """This rank's part of the model, before it is wrapped; ``encoders`` are the provider's, none for a layer spec."""

    model: Any
    encoders: Mapping[str, Encoder]


def build_model(spec: Mapping[str, Any], config: ModelConfig) -> Built:
    """Call the spec's target with (config, vp_stage) and build what it answers.

    A ModuleSpec or TransformerBlockSubmodules becomes a DecoderModel of such layers; a ModelProvider builds all itself.
    Raises ComponentError for any other answer.
    """
    answer = instantiate(spec, config=config, vp_stage=None)
    pre, post = parallel_state.is_pipeline_first_stage(), parallel_state.is_pipeline_last_stage()
    if isinstance(answer, ModuleSpec | TransformerBlockSubmodules):
        model = DecoderModel(config, answer, pre_process=pre, post_process=post, vp_stage=None, **config.gpt)
        return Built(model, {})
    _check_provider(spec, answer)
    return Built(answer(pre_process=pre, post_process=post, vp_stage=None), answer.encoders)


def _check_provider(spec: Mapping[str, Any], answer: object) -> None:
    wanted = ("pre_process", "post_process", "vp_stage")
    if not isinstance(answer, ModelProvider) or inspect.isclass(answer):
        raise ComponentError(
            f"model.spec={spec['_target_']} returned {answer!r}; it must return a ModuleSpec, block submodules "
            f"or a ModelProvider: an object with `encoders`, callable with {', '.join(wanted)}"
        )
    try:
        inspect.signature(answer).bind(**dict.fromkeys(wanted))
    except TypeError as error:
        raise ComponentError(
            f"model.spec={spec['_target_']}: its provider cannot be called with {wanted}: {error}"
        ) from error


def global_names(model: Any, config: ModelConfig) -> dict[str, Any]:
    """Parameters and persistent buffers of this rank by name, decoder layers and experts numbered over all ranks."""
    tensors = {name: value for name, value in model.state_dict(keep_vars=True).items() if hasattr(value, "dtype")}
    layer = get_transformer_layer_offset(config)
    expert = parallel_state.get_expert_model_parallel_rank() * (config.num_moe_experts or 0)
    expert //= parallel_state.get_expert_model_parallel_world_size()
    return {shifted(name, layer, expert): value for name, value in tensors.items()}


def shifted(name: str, layer: int, expert: int) -> str:
    """A parameter's name with its layer's number and its expert's number, if it has them, so much higher."""

    def add(offset: int) -> Callable[[re.Match[str]], str]:
        return lambda found: str(int(found[0]) + offset)

    return EXPERT.sub(add(expert), LAYER.sub(add(layer), name))


def freeze(names: Mapping[str, Any], patterns: Sequence[str]) -> None:
    """Turn gradients off for each parameter that a pattern finds (``re.search`` on names with global layer numbers).

    Raises ComponentError for a pattern that finds nothing on any rank, and when nothing is left to train.
    """
    for name, parameter in names.items():
        if any(re.search(pattern, name) for pattern in patterns):
            parameter.requires_grad_(False)
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, {name: value.requires_grad for name, value in names.items()})
    merged = {name: trains for rank in everywhere for name, trains in rank.items()}
    if lost := [pattern for pattern in patterns if not any(re.search(pattern, name) for name in merged)]:
        raise ComponentError(f"model.freeze: {lost} match no parameter; names look like {sorted(merged)[:3]}")
    if not any(merged.values()):
        raise ComponentError("model.freeze: every parameter is frozen, nothing is left to train")


def wrap(model: Any, config: ModelConfig, device: str) -> Any:
    """The model in Megatron's data-parallel wrapper, its hooks in place."""
    wrapped = DistributedDataParallel(config, DistributedDataParallelConfig(), model.to(device))
    wrapped.broadcast_params()
    config.no_sync_func = wrapped.no_sync
    config.finalize_model_grads_func = finalize_model_grads
    return wrapped
