"""config.json -> the numbers that sizes follow from: one row an architecture, after transformers 5.19's classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any

import msgspec

from slime_launch.errors import ConfigError, Problem

Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
Natural = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
HFConfig = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class VisionShape:
    """A vision tower, in config.json's words. ``intermediate_size`` is the merger's in GLM's, the blocks' in Qwen's."""

    depth: Natural
    hidden_size: Count
    intermediate_size: Count
    out_hidden_size: Count
    in_channels: Count
    patch_size: Count
    temporal_patch_size: Count
    spatial_merge_size: Count
    image_size: Count = 1
    attention_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder, in config.json's words.

    output_bias: on attention's output. mlp_bias: on the gated feed-forward. post_norms: GLM's norms after each block.
    vision: the tower beside it.
    """

    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Annotated[int, msgspec.Meta(ge=0, le=100_000)]
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    use_qk_norm: bool = False
    post_norms: bool = False
    num_experts: Natural = 0
    num_experts_per_tok: Natural = 0
    moe_intermediate_size: Natural = 0
    n_shared_experts: Natural = 0
    first_k_dense_replace: Natural = 0
    decoder_sparse_step: Count = 1
    mlp_only_layers: tuple[int, ...] = ()
    max_position_embeddings: Count = 1
    partial_rotary_factor: float = 1.0
    tied: bool = False
    vision: VisionShape | None = None

    @property
    def kv_heads(self) -> int:
        """Key-value heads; as many as query heads where none are named."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head(self) -> int:
        """Channels of one head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @cached_property
    def sparse(self) -> tuple[bool, ...]:
        """For each layer whether its feed-forward is a mixture of experts."""
        return tuple(
            self.num_experts > 0
            and index >= self.first_k_dense_replace
            and (index + 1) % self.decoder_sparse_step == 0
            and index not in self.mlp_only_layers
            for index in range(self.num_hidden_layers)
        )


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One row.

    reads: keys of config.json's text part -> what transformers takes where the key is missing; no other key counts.
    fixed: fields of Shape that the code sets whatever config.json says.
    same: fields of Shape that follow another one.
    vision: the tower's keys, as ``reads``; empty for none. tower: whose tower, see ``slime_launch.sizes.towers``.
    lean_encoder: whether SGLang's encoder-only server leaves the decoder out; where not, it allocates all of it.
    """

    reads: Mapping[str, Any]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    same: Mapping[str, str] = field(default_factory=dict)
    vision: Mapping[str, Any] = field(default_factory=dict)
    tower: str = ""
    lean_encoder: bool = False


RENAMED = {"n_routed_experts": "num_experts"}
ALIASES = {"num_experts": "num_local_experts", "n_routed_experts": "num_local_experts"}
"""A second key under which transformers finds the same number."""


def _sizes(
    vocab: int, hidden: int, ffn: int, layers: int, heads: int, kv: int | None, positions: int
) -> dict[str, Any]:
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "max_position_embeddings": positions,
    }


_GLM_EXPERTS = {
    "n_routed_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 1408,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
_QWEN_EXPERTS = {
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "decoder_sparse_step": 1,
    "mlp_only_layers": (),
}
_GLM_VISION = {
    "depth": 24,
    "hidden_size": 1536,
    "intermediate_size": 13696,
    "out_hidden_size": 4096,
    "in_channels": 3,
    "image_size": 336,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "attention_bias": False,
}
_QWEN_VISION = {
    "depth": 32,
    "hidden_size": 3584,
    "intermediate_size": 3420,
    "out_hidden_size": 3584,
    "in_channels": 3,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
}
_SAME_BIAS = {"output_bias": "attention_bias"}
_QWEN_DENSE = _sizes(151936, 4096, 22016, 32, 32, 32, 32768)
_QWEN_MOE = _sizes(151936, 2048, 6144, 24, 32, 4, 32768)
_GLM_DENSE = _sizes(151552, 4096, 13696, 40, 32, 2, 131072)
_GLM_MOE = _sizes(151552, 4096, 10944, 46, 96, 8, 131072)

ARCHITECTURES: Mapping[str, Architecture] = {
    "LlamaForCausalLM": Architecture(
        reads=_sizes(32000, 4096, 11008, 32, 32, None, 2048)
        | {"head_dim": None, "attention_bias": False, "mlp_bias": False},
        same=_SAME_BIAS,
    ),
    "Qwen2ForCausalLM": Architecture(reads=_QWEN_DENSE | {"head_dim": None}, fixed={"attention_bias": True}),
    "Qwen3ForCausalLM": Architecture(
        reads=_QWEN_DENSE | {"head_dim": 128, "attention_bias": False}, fixed={"use_qk_norm": True}, same=_SAME_BIAS
    ),
    "Qwen3MoeForCausalLM": Architecture(
        reads=_QWEN_MOE | {"head_dim": None, "attention_bias": False} | _QWEN_EXPERTS,
        fixed={"use_qk_norm": True},
        same=_SAME_BIAS,
    ),
    "Glm4ForCausalLM": Architecture(
        reads=_GLM_DENSE | {"head_dim": 128, "attention_bias": True, "partial_rotary_factor": 0.5},
        fixed={"post_norms": True},
    ),
    "Glm4MoeForCausalLM": Architecture(
        reads=_GLM_MOE
        | {"head_dim": None, "attention_bias": False, "use_qk_norm": False, "partial_rotary_factor": 0.5}
        | _GLM_EXPERTS,
    ),
    "Glm4vForConditionalGeneration": Architecture(
        reads=_GLM_DENSE | {"max_position_embeddings": 32768},
        fixed={"attention_bias": True, "post_norms": True},
        vision=_GLM_VISION,
        tower="glm",
    ),
    "Glm4vMoeForConditionalGeneration": Architecture(
        reads=_GLM_MOE
        | {"vocab_size": 151424, "max_position_embeddings": 65536}
        | {"head_dim": None, "attention_bias": True, "partial_rotary_factor": 0.5}
        | _GLM_EXPERTS,
        vision=_GLM_VISION,
        tower="glm",
    ),
    "Qwen2_5_VLForConditionalGeneration": Architecture(
        reads=_sizes(152064, 8192, 29568, 80, 64, 8, 32768),
        fixed={"attention_bias": True},
        vision=_QWEN_VISION,
        tower="qwen",
        lean_encoder=True,
    ),
}


def architecture_of(hf: HFConfig) -> Architecture | None:
    """The row of the first architecture that config.json names; None when this table has none."""
    names = hf.get("architectures")
    known = [name for name in names if name in ARCHITECTURES] if isinstance(names, list) else []
    return ARCHITECTURES[known[0]] if known else None


def shape_of(hf: HFConfig) -> Shape | None:
    """The numbers of a config.json; None for an architecture that this table does not have.

    Raises ConfigError when a number is none, or out of range.
    """
    row = architecture_of(hf)
    if row is None:
        return None
    text = hf.get("text_config") or hf
    values = _read(row.reads, text) | dict(row.fixed)
    values |= {name: values[source] for name, source in row.same.items()}
    rope = text.get("rope_parameters") or {}
    if "partial_rotary_factor" in rope:
        values["partial_rotary_factor"] = rope["partial_rotary_factor"]
    values["tied"] = bool(hf.get("tie_word_embeddings") or text.get("tie_word_embeddings"))
    if row.vision:
        values["vision"] = _read(row.vision, hf.get("vision_config") or {})
    try:
        return msgspec.convert(values, Shape)
    except msgspec.ValidationError as error:
        problem = Problem("config.json", hf.get("architectures"), str(error), "its sizes must be numbers in range")
        raise ConfigError([problem]) from error


def _read(reads: Mapping[str, Any], text: HFConfig) -> dict[str, Any]:
    """What a part of config.json says; null and missing both mean the default."""
    values = {}
    for key, default in reads.items():
        found = text.get(key)
        if found is None and key in ALIASES:
            found = text.get(ALIASES[key])
        values[RENAMED.get(key, key)] = default if found is None else found
    return values
