"""A spec -> this rank's model, one chunk a virtual pipeline stage. Imports Megatron."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from components.megatron.config import ModelConfig
from components.megatron.critic import ValueHead, make_critic
from components.megatron.spec import build_stage, call_spec
from components.megatron.weights import LAYER
from components.models.base import Encoder, HasEncoders
from slime_launch.errors import ComponentError

EXPERT = re.compile(r"(?<=\.mlp\.experts\.local_experts\.)\d+(?=\.)")
FREEZE, TRAIN_ONLY = "model.freeze", "model.train_only"


@dataclass(frozen=True)
class Built:
    """This rank's part of the model, before it is wrapped.

    chunks: one a virtual pipeline stage, in order. encoders: the provider's, none for a layer spec. tensors: parameters
    and persistent buffers of all chunks by global name.
    """

    chunks: tuple[Any, ...]
    encoders: Mapping[str, Encoder]
    tensors: Mapping[str, Any]


def build_model(spec: Mapping[str, Any], config: ModelConfig, *, critic: bool = False, seed: int = 0) -> Built:
    """Call the spec's target with (config, vp_stage), once a virtual stage, and build what it answers.

    critic: its last stage gets a value head, drawn by ``seed``, in the place of its output layer.
    Raises ComponentError for an answer that is no spec and no provider.
    """
    stages = config.virtual_pipeline_model_parallel_size
    chunks: list[Any] = []
    encoders: dict[str, Encoder] = {}
    tensors: dict[str, Any] = {}
    for vp_stage in range(stages) if stages else (None,):
        answer = call_spec(spec, config, vp_stage)
        encoders |= dict(answer.encoders) if isinstance(answer, HasEncoders) else {}
        chunk = build_stage(spec, answer, config, vp_stage)
        if critic:
            make_critic(chunk, seed)
        named = global_names(chunk, config, vp_stage)
        if twice := sorted(named.keys() & tensors.keys()):
            raise ComponentError(f"model.spec={spec['_target_']}: two virtual stages of one rank have {twice[:3]}")
        tensors |= named
        chunks.append(chunk)
    return Built(tuple(chunks), encoders, tensors)


def global_names(model: Any, config: ModelConfig, vp_stage: int | None = None) -> dict[str, Any]:
    """Parameters and persistent buffers of a chunk by name, decoder layers and experts numbered over all ranks."""
    stored = model.state_dict(keep_vars=True).items()
    # Transformer Engine keeps a state of its own beside the weights, empty without fp8.
    tensors = {name: value for name, value in stored if hasattr(value, "dtype") and not name.endswith("_extra_state")}
    layer = get_transformer_layer_offset(config, vp_stage)
    expert = parallel_state.get_expert_model_parallel_rank() * (config.num_moe_experts or 0)
    expert //= parallel_state.get_expert_model_parallel_world_size()
    return {shifted(name, layer, expert): value for name, value in tensors.items()}


def shifted(name: str, layer: int, expert: int) -> str:
    """A parameter's name with its layer's number and its expert's number, if it has them, so much higher."""

    def add(offset: int) -> Callable[[re.Match[str]], str]:
        return lambda found: str(int(found[0]) + offset)

    return EXPERT.sub(add(expert), LAYER.sub(add(layer), name))


def freeze(names: Mapping[str, Any], frozen: Sequence[str], train_only: Sequence[str] = ()) -> None:
    """Turn gradients off for each parameter that a pattern of ``frozen`` finds, or that none of ``train_only`` does.

    Patterns are searched for (``re.search``) in names with global layer numbers. A last stage's copy of a tied
    embedding goes by the embedding's name: else one copy would train without the other.
    Raises ComponentError when both are given, for a pattern that finds nothing on any rank, and when nothing is left to
    train.
    """
    if frozen and train_only:
        raise ComponentError(f"{FREEZE} and {TRAIN_ONLY} exclude each other; keep one of them")
    names = {_owner(name, parameter): parameter for name, parameter in names.items()}
    key, patterns = (TRAIN_ONLY, train_only) if train_only else (FREEZE, frozen)
    for name, parameter in names.items():
        found = any(re.search(pattern, name) for pattern in patterns)
        if found != bool(train_only):
            parameter.requires_grad_(False)
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, {name: value.requires_grad for name, value in names.items()})
    merged = {name: trains for rank in everywhere for name, trains in rank.items()}
    if lost := [pattern for pattern in patterns if not any(re.search(pattern, name) for name in merged)]:
        raise ComponentError(f"{key}: {lost} match no parameter; names look like {sorted(merged)[:3]}")
    if not any(merged.values()):
        raise ComponentError(f"{key}: every parameter is frozen, nothing is left to train")


def _owner(name: str, parameter: Any) -> str:
    """The name of what a parameter is a copy of, or its own. Megatron marks the last stage's copy of an embedding."""
    return name.replace("output_layer", "embedding.word_embeddings") if getattr(parameter, "shared", False) else name


def wrap(chunks: Sequence[Any], config: ModelConfig, device: str, distributed: bool = False) -> list[Any]:
    """Each chunk in Megatron's data-parallel wrapper, gradients summed in float32, its hooks in place.

    distributed: the optimizer's state is split over data-parallel ranks.
    """
    settings = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=distributed)
    wrapped = [DistributedDataParallel(config, settings, _placed(chunk, config, device)) for chunk in chunks]
    for chunk in wrapped:
        chunk.broadcast_params()
        for module in chunk.modules() if config.recompute_granularity else ():
            if isinstance(module, TransformerBlock):
                module.register_forward_pre_hook(_let_gradients_through, with_kwargs=True)
    syncs = [chunk.no_sync for chunk in wrapped]
    config.no_sync_func = syncs if len(syncs) > 1 else syncs[0]
    config.finalize_model_grads_func = finalize_model_grads
    return wrapped


def let_go(chunks: Sequence[Any]) -> None:
    """Cut the references by which wrapped chunks hold themselves: their process groups, some 70 open descriptors, then
    end with their last user and not when Python's collector of cycles comes by.
    """
    for chunk in chunks:
        chunk.grad_accs.clear()
        chunk.config.no_sync_func = None


def _let_gradients_through(block: TransformerBlock, args: tuple[Any, ...], given: dict[str, Any]) -> None:
    """What is recomputed gets a gradient only where its input wants one; a frozen embedding's output does not."""
    hidden_SBD = given["hidden_states"] if "hidden_states" in given else args[0]
    if isinstance(hidden_SBD, torch.Tensor) and torch.is_grad_enabled():
        hidden_SBD.requires_grad_()


def _placed(chunk: torch.nn.Module, config: ModelConfig, device: str) -> torch.nn.Module:
    """The chunk on its device, its parameters, but a value head's, in the config's type: torch's norms ignore that."""
    chunk.to(device)
    for module in chunk.modules():
        for parameter in () if isinstance(module, ValueHead) else module.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(config.params_dtype)
    return chunk
