"""The GLM-Omni model on Megatron-Core. Imports Megatron: import it only once the platform is set up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import MultimodalRotaryEmbedding
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import dropout as drop

from components.models.base import Encoder
from slime_launch.errors import ComponentError


class PostNormAdd(torch.nn.Module):  # type: ignore[misc]
    """GLM's norm after a block, in the place of Megatron's bias-dropout-add: residual + norm(output + bias)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm = WrappedTorchNorm(config, config.hidden_size, config.layernorm_epsilon)

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


def omni_layer_spec(config: TransformerConfig) -> ModuleSpec:
    """Megatron's own GPT layer with GLM's post-norms."""
    spec = get_gpt_layer_local_spec(normalization=config.normalization)
    post_norm = ModuleSpec(module=PostNormAdd, params={"config": config})
    spec.submodules = replace(spec.submodules, self_attn_bda=post_norm, mlp_bda=post_norm)
    return spec


class InterleavedMultimodalRotary(MultimodalRotaryEmbedding):  # type: ignore[misc]
    """Multimodal rotary angles for interleaved channel pairs, as GLM rotates them.

    Megatron-Core 0.16.1 reshapes interleaved angles by the wrong axis and cuts sections before interleaving.
    """

    def forward(self, position_ids: Tensor, mrope_section: list[int], cp_group: object = None) -> Tensor:
        """Angles [S, B, 1, rotary channels] for positions [3, B, S]; a section of channels follows one axis in turn."""
        inv_freq_C = self.inv_freq.to(position_ids.device)
        angles_3BSC = position_ids.unsqueeze(-1).to(inv_freq_C.dtype) * inv_freq_C
        sections = angles_3BSC.split(mrope_section, dim=-1)
        angles_BSC = torch.cat([section[i % 3] for i, section in enumerate(sections)], dim=-1)
        return angles_BSC.repeat_interleave(2, dim=-1).transpose(0, 1).unsqueeze(2).contiguous()


class OmniModel(GPTModel):  # type: ignore[misc]
    """A GPT decoder with frozen towers; parameter names are GPTModel's, the towers' under ``encoders.<name>``."""

    def __init__(self, encoders: Mapping[str, Encoder], **gpt: Any) -> None:
        super().__init__(**gpt)
        self.encoder_kinds = dict(encoders)
        cp_group = self.rotary_pos_emb.cp_group
        self.rotary_pos_emb: Any = InterleavedMultimodalRotary(
            self.config.kv_channels,
            self.rotary_percent,
            rotary_interleaved=True,
            rotary_base=self.rotary_base,
            cp_group=cp_group,
        )
        if self.pre_process:
            towers = {name: encoder.tower(self.config.hf) for name, encoder in encoders.items()}
            self.encoders = torch.nn.ModuleDict(towers).to(self.config.params_dtype).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> OmniModel:
        """As torch's; the towers stay in evaluation."""
        super().train(mode)
        if self.pre_process:
            self.encoders.eval()
        return self

    def forward(self, input_ids: Tensor, media: Mapping[str, Mapping[str, Any]] | None = None, **gpt: Any) -> Any:
        """As GPTModel's, the embeddings of placeholders replaced by the towers' features.

        media: encoder name -> {"inputs": the tower's tensors, "slots": flat indices into input_ids [B, S] of the
        placeholders, "rows": the feature row of each slot}. Read on the first stage only.
        """
        if self.pre_process and media:
            gpt["decoder_input"] = self._embed(input_ids, gpt["position_ids"], media)
        return super().forward(input_ids, **gpt)

    def _embed(self, input_ids_BS: Tensor, position_ids: Tensor, media: Mapping[str, Mapping[str, Any]]) -> Tensor:
        embedded_SBD = self.embedding(input_ids=input_ids_BS, position_ids=position_ids)
        flat = embedded_SBD.transpose(0, 1).flatten(0, 1)
        for name, part in media.items():
            features = self._features(name, part["inputs"], int(part["rows"].max()) + 1)
            flat = flat.index_copy(0, part["slots"], features[part["rows"]].to(flat.dtype))
        return flat.unflatten(0, input_ids_BS.shape).transpose(0, 1).contiguous()

    def _features(self, name: str, inputs: Mapping[str, Tensor], wanted: int) -> Tensor:
        with torch.no_grad():
            features = self.encoder_kinds[name].encode(self.encoders[name], inputs)
        if len(features) != wanted:
            raise ComponentError(
                f"{name}: the media give {len(features)} features for {wanted} placeholders; prompt_ids and media must "
                "come from the same processor call"
            )
        return features
