"""The decoder that every family shares, on Megatron-Core. Imports it: import this only once the platform is set up."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import dropout as drop

from components.models.attention import TorchAttention
from components.models.context import Context, this_context
from components.models.dense import Biases
from components.models.engine import block_spec, engine_spec, norm
from components.models.rope import Rope


class BatchRotary(torch.nn.Module):  # type: ignore[misc]
    """Rotary angles by the batch's positions, scaled or not, for halved or interleaved channel pairs.

    In the place of Megatron-Core 0.16.1's MultimodalRotaryEmbedding, which knows no scaling, reshapes interleaved
    angles by the wrong axis and cuts sections before interleaving.
    """

    def __init__(self, rope: Rope, interleaved: bool, context: Context | None = None) -> None:
        super().__init__()
        self.interleaved = interleaved
        self.context = context or Context()
        self.inv_freq_C = rope.frequencies()

    def forward(self, position_ids: Tensor, mrope_section: list[int], cp_group: object = None) -> Tensor:
        """Angles [S, B, 1, rotary channels] for positions [3, B, S]; a section of pairs follows one axis in turn.

        Of rows that ranks share: the angles of this rank's places, for positions of all, as Megatron's own.
        """
        inv_freq_C = self.inv_freq_C.to(position_ids.device)
        position_ids = self.context.mine(position_ids, -1)
        angles_3BSC = position_ids.unsqueeze(-1).to(inv_freq_C.dtype) * inv_freq_C
        sections = angles_3BSC.split(mrope_section, dim=-1)
        angles_BSC = torch.cat([section[i % 3] for i, section in enumerate(sections)], dim=-1)
        paired = angles_BSC.repeat_interleave(2, dim=-1) if self.interleaved else torch.cat([angles_BSC] * 2, dim=-1)
        return paired.transpose(0, 1).unsqueeze(2).contiguous()


class DecoderModel(GPTModel):  # type: ignore[misc]
    """A GPTModel whose rotary positions are those of config.json (``config.rope``); a ``base.TakesHead``."""

    def __init__(self, config: TransformerConfig, transformer_layer_spec: Any, *args: Any, **gpt: Any) -> None:
        super().__init__(config, block_spec(transformer_layer_spec, config, gpt.get("vp_stage")), *args, **gpt)
        self._head: Callable[..., Any] | None = None
        if self.position_embedding_type == "mrope":
            context = this_context() if config.context_parallel_size > 1 else None
            self.rotary_pos_emb: Any = BatchRotary(config.rope, config.rotary_interleaved, context)

    @property
    def takes_head(self) -> bool:
        """Not with multi-token prediction, whose layers go to the output layer too."""
        return self.config.mtp_num_layers is None

    def forward(self, *args: Any, head: Callable[..., Any] | None = None, **gpt: Any) -> Any:
        """As GPTModel's; on the last stage ``head``, where given, has the place of the output layer.

        It is called with the last norm's output [S, B, hidden] (with sequence parallelism this rank's part of S) and
        the output layer's weight [vocabulary of this rank, hidden]; what it returns is returned.
        """
        self._head = head
        try:
            return super().forward(*args, **gpt)
        finally:
            self._head = None

    def _postprocess(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._head is None or not self.post_process:
            return super()._postprocess(hidden_states, *args, **kwargs)
        tied = self.share_embeddings_and_output_weights
        weight = self.shared_embedding_or_output_weight() if tied else self.output_layer.weight
        return self._head(hidden_states, weight)


class PostNormAdd(torch.nn.Module):  # type: ignore[misc]
    """GLM's norm after a block, in the place of Megatron's bias-dropout-add: residual + norm(output + bias)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm = norm(config, config.hidden_size)

    def forward(self, training: bool, fused: bool) -> Callable[[tuple[Tensor, Tensor | None], Tensor, float], Tensor]:
        """The function that the layer calls with ((output, bias), residual, dropout probability)."""
        return partial(self._add, training)

    def _add(self, training: bool, output: tuple[Tensor, Tensor | None], residual: Tensor, dropout: float) -> Tensor:
        value_SBD, bias_D = output
        # The layer turns gradients on around this call; without them in evaluation a no-grad pass stays one.
        with torch.set_grad_enabled(training):
            if bias_D is not None:
                value_SBD = value_SBD + bias_D
            return residual + drop(self.norm(value_SBD), dropout, training)


class UnbiasedAttention(SelfAttention):  # type: ignore[misc]
    """Attention without an output bias in a model whose MLPs have biases."""

    def __init__(self, config: TransformerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(_unbiased(config), *args, **kwargs)


class UnbiasedMLP(MLP):  # type: ignore[misc]
    """An MLP without biases in a model whose attention output has one."""

    def __init__(self, config: TransformerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(_unbiased(config), *args, ffn_hidden_size=config.ffn_hidden_size, **kwargs)


def local_layer_spec(config: TransformerConfig, biases: Biases, post_norms: bool = False) -> ModuleSpec:
    """Megatron's own GPT layer, of Megatron-Core modules or Transformer Engine's (``config.transformer_engine``).

    biases: which linears have them. post_norms: GLM's norms after attention and MLP.
    """
    spec = get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization=config.normalization)
    spec.submodules.self_attention.submodules.core_attention = TorchAttention
    parts: dict[str, Any] = {}
    if biases.mlp and not biases.proj:
        parts["self_attention"] = replace(spec.submodules.self_attention, module=UnbiasedAttention)
    if biases.proj and not biases.mlp:
        parts["mlp"] = replace(spec.submodules.mlp, module=UnbiasedMLP)
    if post_norms:
        post_norm = ModuleSpec(module=PostNormAdd, params={"config": config})
        parts |= {"self_attn_bda": post_norm, "mlp_bda": post_norm}
    spec.submodules = replace(spec.submodules, **parts)
    return engine_spec(spec, config)


def _unbiased(config: TransformerConfig) -> TransformerConfig:
    plain = copy.copy(config)
    plain.add_bias_linear = False
    return plain
