"""GLM-Omni's weight table: the decoder. The towers map name by name (``Encoder.prefix``)."""

from __future__ import annotations

from components.models.base import HFConfig, Rule, output_rule
from components.models.layouts import FusedQKV, Gated, Replicated, Split, Vocab


def rules(hf: HFConfig) -> tuple[Rule, ...]:
    """Every parameter of the decoder, its Hugging Face names and its layout."""
    text = hf["text_config"]
    vocab = Vocab(text["vocab_size"])
    qkv = FusedQKV(text["num_attention_heads"], text["num_key_value_heads"])
    here, there = "decoder.layers.{}.", "model.language_model.layers.{}."
    embedding = "model.language_model.embed_tokens.weight"

    def norm(megatron: str, name: str) -> Rule:
        return Rule(here + megatron, (there + name + ".weight",), Replicated())

    def fused(kind: str) -> Rule:
        names = tuple(there + f"self_attn.{part}_proj.{kind}" for part in "qkv")
        return Rule(here + f"self_attention.linear_qkv.{kind}", names, qkv)

    return (
        Rule("embedding.word_embeddings.weight", (embedding,), vocab),
        norm("input_layernorm.weight", "input_layernorm"),
        fused("weight"),
        fused("bias"),
        Rule(here + "self_attention.linear_proj.weight", (there + "self_attn.o_proj.weight",), Split(1)),
        norm("self_attn_bda.norm.weight", "post_self_attn_layernorm"),
        norm("pre_mlp_layernorm.weight", "post_attention_layernorm"),
        Rule(here + "mlp.linear_fc1.weight", (there + "mlp.gate_up_proj.weight",), Gated(merged=True)),
        Rule(here + "mlp.linear_fc2.weight", (there + "mlp.down_proj.weight",), Split(1)),
        norm("mlp_bda.norm.weight", "post_mlp_layernorm"),
        Rule("decoder.final_layernorm.weight", ("model.language_model.norm.weight",), Replicated()),
        output_rule(bool(hf.get("tie_word_embeddings", False)), embedding, vocab),
    )
