"""Qwen3-MoE's weight table."""

from __future__ import annotations

from components.models.base import HFConfig, Rule, needed
from components.models.dense import Biases
from components.models.moe import Experts, moe_rules


def experts(hf: HFConfig) -> Experts:
    """Experts in every ``decoder_sparse_step``-th layer that ``mlp_only_layers`` does not name.

    transformers 5 writes ``num_local_experts``, the published checkpoints have ``num_experts``. Raises ComponentError
    where neither is there.
    """
    count = hf.get("num_experts") or hf.get("num_local_experts")
    needed({**hf, "num_experts": count}, ("num_hidden_layers", "num_experts"))
    layers, step = hf["num_hidden_layers"], hf.get("decoder_sparse_step", 1)
    plain = hf.get("mlp_only_layers") or ()
    sparse = (number for number in range(layers) if number not in plain and (number + 1) % step == 0)
    return Experts(count=int(count or 0), layers=layers, sparse=tuple(sparse))


def rules(hf: HFConfig) -> tuple[Rule, ...]:
    """Every parameter of the decoder, its Hugging Face names and its layout."""
    return moe_rules(hf, experts(hf), Biases(), root="model.", qk_norm=True)
