"""What ``model.spec`` answers, told apart by type and Protocol, and the stage of a model that it becomes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeGuard

from megatron.core import parallel_state
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from torch.nn import Module

from components.megatron.config import ModelConfig
from components.models.attention import TorchAttention
from components.models.base import ModelProvider
from components.models.decoder import DecoderModel
from slime_launch.errors import ComponentError
from slime_launch.targets import instantiate

STAGE = ("pre_process", "post_process")
CORE = "core_attention"
ALLOWED = (
    "it must return a ModuleSpec, a TransformerBlockSubmodules or a model provider: a function or an object that is "
    f"called with {', '.join(STAGE)} (and vp_stage, if it takes that) and builds a torch.nn.Module"
)


def call_spec(spec: Mapping[str, Any], config: ModelConfig, vp_stage: int | None) -> Any:
    """Call the spec's target with (config, vp_stage): a ModuleSpec, block submodules or a ModelProvider.

    Raises ComponentError that says what it returned and what it may return, and for attention that cannot be shared.
    """
    answer = instantiate(spec, config=config, vp_stage=vp_stage)
    if isinstance(answer, ModuleSpec | TransformerBlockSubmodules):
        _check_attention(spec, _cores(answer), config)
        return answer
    if not is_provider(answer):
        raise ComponentError(f"model.spec={spec['_target_']} returned {described(answer)}; {ALLOWED}")
    try:
        inspect.signature(answer).bind(**dict.fromkeys(_keywords(answer)))
    except (TypeError, ValueError) as error:
        raise ComponentError(
            f"model.spec={spec['_target_']} returned {described(answer)}, which cannot be called as a model provider "
            f"({error}); {ALLOWED}"
        ) from error
    return answer


def build_stage(spec: Mapping[str, Any], answer: Any, config: ModelConfig, vp_stage: int | None) -> Module:
    """This rank's model of one virtual stage (None: of its only one).

    Raises ComponentError when a provider builds something else than a module, or attention that cannot be shared.
    """
    pre = parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage)
    post = parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage)
    if not is_provider(answer):
        return DecoderModel(config, answer, pre_process=pre, post_process=post, vp_stage=vp_stage, **config.gpt)
    given = {"pre_process": pre, "post_process": post, "vp_stage": vp_stage}
    try:
        model = answer(**{name: given[name] for name in _keywords(answer)})
    except AssertionError as error:
        raise ComponentError(f"model.spec={spec['_target_']}: its model provider fails: {error}") from error
    if not isinstance(model, Module):
        raise ComponentError(
            f"model.spec={spec['_target_']}: its model provider built {described(model)}; it must build a "
            "torch.nn.Module, this pipeline stage's"
        )
    built = dict(model.named_modules())
    _check_attention(spec, (type(part) for name, part in built.items() if name.endswith(CORE)), config)
    return model


def _cores(part: Any) -> Iterator[Any]:
    """What a spec of any depth names as the core of attention."""
    if isinstance(part, list):
        for each in part:
            yield from _cores(each)
    elif is_dataclass(part) and not inspect.isclass(part):
        for entry in fields(part):
            value = getattr(part, entry.name)
            if entry.name == CORE:
                yield value.module if isinstance(value, ModuleSpec) else value
            else:
                yield from _cores(value)


def _check_attention(spec: Mapping[str, Any], cores: Iterator[Any], config: ModelConfig) -> None:
    """Raises ComponentError where ranks share rows and the core of some attention does not gather their keys."""
    other = {core for core in cores if not (inspect.isclass(core) and issubclass(core, TorchAttention))}
    if other and config.context_parallel_size > 1:
        raise ComponentError(
            f"model.spec={spec['_target_']}: {CORE} {sorted(map(described, other))} does not serve "
            f"trainer.parallel.cp={config.context_parallel_size}; use components.models.attention.TorchAttention, or "
            "set cp to 1"
        )


def is_provider(answer: object) -> TypeGuard[ModelProvider]:
    """Whether an answer builds the model itself: something to call, neither a spec, nor a class, nor a built model."""
    known = ModuleSpec | TransformerBlockSubmodules
    return isinstance(answer, ModelProvider) and not (inspect.isclass(answer) or isinstance(answer, known | Module))


def described(thing: object) -> str:
    """What an error calls a thing that was returned."""
    if inspect.isclass(thing):
        return f"the class {thing.__qualname__}"
    if isinstance(thing, Module):
        return f"a built {type(thing).__name__}"
    shown = repr(thing)
    return f"{shown[:80]}{'...' if len(shown) > 80 else ''} (a {type(thing).__name__})"


def _keywords(provider: ModelProvider) -> tuple[str, ...]:
    """The keywords to call a provider with: ``vp_stage`` where it takes it."""
    parameters = inspect.signature(provider).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return (*STAGE, "vp_stage") if anything or "vp_stage" in parameters else STAGE
