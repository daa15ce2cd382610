"""A user's own specs and algorithm; used as ``_target_`` by the tests."""

from __future__ import annotations

from typing import Any


def layers(config: Any, vp_stage: int | None) -> Any:
    """One ModuleSpec for all layers."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    return get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization=config.normalization)


def block_spec(config: Any, vp_stage: int | None) -> Any:
    """Block submodules of this stage's layers instead of one layer for all."""
    from megatron.core.transformer.torch_norm import WrappedTorchNorm
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build

    of_stage = [layers(config, vp_stage)] * get_num_layers_to_build(config, vp_stage)
    return TransformerBlockSubmodules(layer_specs=of_stage, layer_norm=WrappedTorchNorm)


def provider(config: Any, vp_stage: int | None) -> Any:
    """A plain function as a model provider, which knows of no virtual stage and has no encoders."""

    def build(pre_process: bool, post_process: bool) -> Any:
        from components.models.decoder import DecoderModel

        return DecoderModel(
            config, layers(config, None), pre_process=pre_process, post_process=post_process, **config.gpt
        )

    return build


def plain_provider(config: Any, vp_stage: int | None) -> Any:
    """Megatron's own model, which takes no head, with its own rotary positions."""
    from megatron.core.models.gpt import GPTModel

    from components.models.attention import TorchAttention

    spec = layers(config, None)
    spec.submodules.self_attention.submodules.core_attention = TorchAttention
    gpt = config.gpt | {"position_embedding_type": "rope"}
    return lambda pre_process, post_process: GPTModel(
        config, spec, pre_process=pre_process, post_process=post_process, **gpt
    )


def language_model_provider(config: Any, vp_stage: int | None) -> Any:
    """A model whose decoder, output layer included, sits inside ``language_model``, narrower than the outer config."""
    import copy

    from torch.nn import Module

    class Outer(Module):  # type: ignore[misc]
        def __init__(self, **stage: Any) -> None:
            super().__init__()
            self.config = copy.copy(config)
            self.config.hidden_size = 2 * config.hidden_size
            self.language_model = provider(config, vp_stage)(**stage)

        def forward(self, **inputs: Any) -> Any:
            return self.language_model(**inputs)

        def set_input_tensor(self, tensor: Any) -> None:
            self.language_model.set_input_tensor(tensor)

    return lambda pre_process, post_process: Outer(pre_process=pre_process, post_process=post_process)


def slime_layers(args: Any, config: Any, vp_stage: int | None) -> Any:
    """A layer spec as slime's users write it."""
    if args.num_experts or args.transformer_impl != "local" or args.norm_epsilon != config.layernorm_epsilon:
        raise ValueError(args)
    return layers(config, vp_stage)


def slime_provider(args: Any, config: Any, vp_stage: int | None) -> Any:
    """A model provider as slime's users write it, which reads the command line's names."""
    from megatron.core.models.gpt import GPTModel
    from transformers import AutoConfig

    if AutoConfig.from_pretrained(args.hf_checkpoint).hidden_size != args.hidden_size:
        raise ValueError(args.hf_checkpoint)

    def model_provider(pre_process: bool = True, post_process: bool = True, vp_stage: int | None = None) -> Any:
        return GPTModel(
            config=config,
            transformer_layer_spec=layers(config, vp_stage),
            vocab_size=args.padded_vocab_size,
            max_sequence_length=args.max_position_embeddings,
            pre_process=pre_process,
            post_process=post_process,
            share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
            position_embedding_type=args.position_embedding,
            rotary_percent=args.rotary_percent,
            rotary_base=args.rotary_base,
            vp_stage=vp_stage,
        )

    return model_provider


def nothing(config: Any, vp_stage: int | None) -> Any:
    """Nothing that a model could be made of."""


def a_class(config: Any, vp_stage: int | None) -> Any:
    """A class that could be called with a provider's keywords."""

    class Model:
        def __init__(self, pre_process: bool, post_process: bool) -> None:
            del pre_process, post_process

    return Model


def built_model(config: Any, vp_stage: int | None) -> Any:
    """A module, which may be called too."""
    import torch

    return torch.nn.Linear(2, 2)


def demanding_provider(config: Any, vp_stage: int | None) -> Any:
    """A provider that wants more than it will be told."""
    return lambda pre_process, post_process, args: None


def empty_provider(config: Any, vp_stage: int | None) -> Any:
    """A provider that builds nothing."""
    return lambda pre_process, post_process, vp_stage: None


class Likelihood:
    """Plain likelihood of the responses as an Algorithm."""

    def advantages(self, rewards_N: Any, groups_N: Any) -> Any:
        return rewards_N

    def loss(
        self, logprobs_BT: Any, old_logprobs_BT: Any, advantages_B: Any, mask_BT: Any
    ) -> tuple[Any, dict[str, Any]]:
        return -logprobs_BT, {}
