"""A user's own specs and algorithm; used as ``_target_`` by the tests."""

from __future__ import annotations

from typing import Any, ClassVar


def block_spec(config: Any, vp_stage: int | None) -> Any:
    """Block submodules of this stage's layers instead of one layer for all."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.torch_norm import WrappedTorchNorm
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build

    layer = get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization=config.normalization)
    layers = [layer] * get_num_layers_to_build(config, vp_stage)
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=WrappedTorchNorm)


def nonsense(config: Any, vp_stage: int | None) -> Any:
    """Neither a spec nor a provider: callable, with the right keywords, but without encoders."""
    return lambda pre_process, post_process, vp_stage: None


class _ShortProvider:
    encoders: ClassVar[dict[str, Any]] = {}

    def __call__(self, pre_process: bool, post_process: bool) -> None:
        return None


def short_provider(config: Any, vp_stage: int | None) -> Any:
    """A provider that cannot be told the virtual stage."""
    return _ShortProvider()


class Likelihood:
    """Plain likelihood of the responses as an Algorithm."""

    def advantages(self, rewards_N: Any, groups_N: Any) -> Any:
        return rewards_N

    def loss(
        self, logprobs_BT: Any, old_logprobs_BT: Any, advantages_B: Any, mask_BT: Any
    ) -> tuple[Any, dict[str, Any]]:
        return -logprobs_BT, {}
