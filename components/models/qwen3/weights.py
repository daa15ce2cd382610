"""Qwen3's weight table."""

from __future__ import annotations

from components.models.base import HFConfig, Rule, output_rule
from components.models.layouts import FusedQKV, Gated, Replicated, Split, Vocab


def rules(hf: HFConfig) -> tuple[Rule, ...]:
    """Every parameter of the decoder, its Hugging Face names and its layout."""
    vocab = Vocab(hf["vocab_size"])
    qkv = FusedQKV(hf["num_attention_heads"], hf["num_key_value_heads"])
    here, there = "decoder.layers.{}.", "model.layers.{}."
    attention = there + "self_attn."
    return (
        Rule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), vocab),
        Rule(here + "input_layernorm.weight", (there + "input_layernorm.weight",), Replicated()),
        Rule(
            here + "self_attention.linear_qkv.weight",
            tuple(attention + f"{part}_proj.weight" for part in "qkv"),
            qkv,
        ),
        Rule(here + "self_attention.q_layernorm.weight", (attention + "q_norm.weight",), Replicated()),
        Rule(here + "self_attention.k_layernorm.weight", (attention + "k_norm.weight",), Replicated()),
        Rule(here + "self_attention.linear_proj.weight", (attention + "o_proj.weight",), Split(1)),
        Rule(here + "pre_mlp_layernorm.weight", (there + "post_attention_layernorm.weight",), Replicated()),
        Rule(
            here + "mlp.linear_fc1.weight",
            (there + "mlp.gate_proj.weight", there + "mlp.up_proj.weight"),
            Gated(merged=False),
        ),
        Rule(here + "mlp.linear_fc2.weight", (there + "mlp.down_proj.weight",), Split(1)),
        Rule("decoder.final_layernorm.weight", ("model.norm.weight",), Replicated()),
        output_rule(bool(hf.get("tie_word_embeddings", False)), "model.embed_tokens.weight", vocab),
    )
