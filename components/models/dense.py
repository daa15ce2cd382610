"""What the dense decoders share: keywords for Megatron and the rows of their weight tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from components.models.base import HFConfig, Rule, dense_transformer, key_value_heads, output_rule, rotary, text_part
from components.models.layouts import FusedQKV, Gated, Layout, Replicated, Split, Vocab
from components.models.rope import Rope, rope_of
from slime_launch.errors import ComponentError

HERE = "decoder.layers.{}."
PRE_NORMS: Mapping[str, str] = {
    "input_layernorm": "input_layernorm",
    "pre_mlp_layernorm": "post_attention_layernorm",
}
"""Megatron's norms of a layer -> Hugging Face's; norms before attention and MLP only."""
GLM_NORMS: Mapping[str, str] = {
    **PRE_NORMS,
    "self_attn_bda.norm": "post_self_attn_layernorm",
    "mlp_bda.norm": "post_mlp_layernorm",
}
"""The same with GLM's norms after attention and MLP (components.models.decoder.PostNormAdd)."""


@dataclass(frozen=True)
class Biases:
    """Which linears of a layer have biases: query, key and value; attention's output; both of the MLP."""

    qkv: bool = False
    proj: bool = False
    mlp: bool = False

    @property
    def keywords(self) -> dict[str, Any]:
        """TransformerConfig keywords; Megatron has one for all linears, so ``local_layer_spec`` takes some out."""
        return {"add_qkv_bias": self.qkv, "add_bias_linear": self.proj or self.mlp}


def is_tied(hf: HFConfig) -> bool:
    """Whether output and input embeddings are one tensor; older files say so in the decoder's part alone."""
    return bool(hf.get("tie_word_embeddings") or text_part(hf).get("tie_word_embeddings"))


def transformer_keywords(hf: HFConfig, biases: Biases, *, partial: bool = False) -> dict[str, Any]:
    """TransformerConfig keywords; ``partial``: the architecture may turn a part of each head's channels.

    Raises ComponentError for what the architecture does not have.
    """
    text = text_part(hf)
    keywords = dense_transformer(text) | biases.keywords
    channels = rope_of(text).channels
    if not partial and channels != keywords["kv_channels"]:
        raise ComponentError(
            f"config.json: partial_rotary_factor turns {channels} of {keywords['kv_channels']} channels of a head; "
            "this architecture turns all"
        )
    return keywords


def gpt_keywords(hf: HFConfig, rope: Rope | None = None) -> dict[str, Any]:
    """GPTModel keywords; ``rope`` as in ``rotary``."""
    return rotary(text_part(hf), rope) | {"share_embeddings_and_output_weights": is_tied(hf)}


def dense_rules(
    hf: HFConfig,
    biases: Biases,
    *,
    root: str = "model.",
    qk_norm: bool = False,
    norms: Mapping[str, str] = PRE_NORMS,
    merged: bool = False,
) -> tuple[Rule, ...]:
    """The whole decoder's weight table.

    root: how the decoder's names start in the checkpoint. merged: gate and up projection are one tensor there.
    """
    there = root + "layers.{}."
    return (
        *outer_rules(hf, root),
        *(Rule(HERE + f"{mine}.weight", (there + f"{theirs}.weight",), Replicated()) for mine, theirs in norms.items()),
        *attention_rules(text_part(hf), there, biases, qk_norm),
        *mlp_rules(there, biases, merged),
    )


def outer_rules(hf: HFConfig, root: str) -> tuple[Rule, ...]:
    """Embedding, last norm and output layer."""
    vocab, embedding = Vocab(text_part(hf)["vocab_size"]), root + "embed_tokens.weight"
    return (
        Rule("embedding.word_embeddings.weight", (embedding,), vocab),
        Rule("decoder.final_layernorm.weight", (root + "norm.weight",), Replicated()),
        output_rule(is_tied(hf), embedding, vocab),
    )


def attention_rules(text: HFConfig, there: str, biases: Biases, qk_norm: bool) -> tuple[Rule, ...]:
    """A layer's attention; ``there`` is how the layer's names start in the checkpoint."""
    here, there = HERE + "self_attention.", there + "self_attn."
    qkv = FusedQKV(text["num_attention_heads"], key_value_heads(text))
    kinds = ("weight", "bias") if biases.qkv else ("weight",)
    rules = [
        Rule(here + f"linear_qkv.{kind}", tuple(there + f"{part}_proj.{kind}" for part in "qkv"), qkv) for kind in kinds
    ]
    rules.append(Rule(here + "linear_proj.weight", (there + "o_proj.weight",), Split(1)))
    if biases.proj:
        rules.append(Rule(here + "linear_proj.bias", (there + "o_proj.bias",), Replicated()))
    if qk_norm:
        rules += [
            Rule(here + f"{part}_layernorm.weight", (there + f"{part}_norm.weight",), Replicated()) for part in "qk"
        ]
    return tuple(rules)


def mlp_rules(there: str, biases: Biases, merged: bool) -> tuple[Rule, ...]:
    """A layer's gated MLP; ``there`` is how the layer's names start in the checkpoint."""
    here, there = HERE + "mlp.", there + "mlp."
    kinds = ("weight", "bias") if biases.mlp else ("weight",)
    gated = ("gate_up_proj",) if merged else ("gate_proj", "up_proj")
    rules = [Rule(here + f"linear_fc1.{kind}", tuple(f"{there}{name}.{kind}" for name in gated), Gated(merged))
             for kind in kinds]  # fmt: skip
    # The second linear's bias is added once, after the ranks' parts are summed.
    layouts: dict[str, Layout] = {"weight": Split(1), "bias": Replicated()}
    rules += [Rule(here + f"linear_fc2.{kind}", (there + f"down_proj.{kind}",), layouts[kind]) for kind in kinds]
    return tuple(rules)
