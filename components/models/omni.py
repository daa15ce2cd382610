"""A decoder with frozen towers on Megatron-Core. Imports Megatron: import it only once the platform is set up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from megatron.core.tensor_parallel import scatter_to_sequence_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from components.models.base import Encoder
from components.models.decoder import DecoderModel
from slime_launch.errors import ComponentError


class OmniModel(DecoderModel):
    """A GPT decoder with frozen towers; parameter names are GPTModel's, the towers' under ``encoders.<name>``."""

    def __init__(self, encoders: Mapping[str, Encoder], config: TransformerConfig, **gpt: Any) -> None:
        # With sequence parallelism each rank takes its part only once the features are in their places.
        super().__init__(config, scatter_embedding_sequence_parallel=False, **gpt)
        self.encoder_kinds = dict(encoders)
        if self.pre_process:
            towers = {name: encoder.tower(self.config.hf) for name, encoder in encoders.items()}
            self.encoders = torch.nn.ModuleDict(towers).to(self.config.params_dtype).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> OmniModel:
        """As torch's; the towers stay in evaluation."""
        super().train(mode)
        if self.pre_process:
            self.encoders.eval()
        return self

    def forward(self, *args: Any, media: Mapping[str, Mapping[str, Any]] | None = None, **gpt: Any) -> Any:
        """As GPTModel's, the embeddings of placeholders replaced by the towers' features.

        media: encoder name -> {"inputs": the tower's tensors, "features": how many they give, "slots": flat indices
        into input_ids [B, S] of the placeholders, "rows": the feature row of each slot}. Read on the first stage only.
        """
        if self.pre_process and (media or self.config.sequence_parallel):
            gpt["decoder_input"] = self._embed(gpt["input_ids"], gpt["position_ids"], media or {})
        return super().forward(*args, **gpt)

    def _embed(self, input_ids_BS: Tensor, position_ids: Tensor, media: Mapping[str, Mapping[str, Any]]) -> Tensor:
        embedded_SBD = self.embedding(input_ids=input_ids_BS, position_ids=position_ids)
        flat = embedded_SBD.transpose(0, 1).flatten(0, 1)
        for name, part in media.items():
            features = self._features(name, part["inputs"], part["features"])
            flat = flat.index_copy(0, part["slots"], features[part["rows"]].to(flat.dtype))
        merged_SBD = flat.unflatten(0, input_ids_BS.shape).transpose(0, 1).contiguous()
        return scatter_to_sequence_parallel_region(merged_SBD) if self.config.sequence_parallel else merged_SBD

    def _features(self, name: str, inputs: Mapping[str, Tensor], wanted: int) -> Tensor:
        with torch.no_grad():
            features = self.encoder_kinds[name].encode(self.encoders[name], inputs)
        if len(features) != wanted:
            raise ComponentError(
                f"{name}: the media give {len(features)} features for {wanted} placeholders; prompt_ids and media must "
                "come from the same processor call"
            )
        return features
