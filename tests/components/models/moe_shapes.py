"""Checkpoints of the families with experts: as shipped, and shapes that differ in every switch there is."""

from __future__ import annotations

from typing import Any

FAMILIES = ("qwen3_moe", "glm4_moe", "glm4v_moe")

SMALL = {"num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 1, "vocab_size": 113}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {},
    "glm4_moe": {},
    "glm4v_moe": {},
    "qwen3_moe-odd": SMALL
    | {
        "head_dim": 22,
        "hidden_size": 72,
        "intermediate_size": 40,
        "moe_intermediate_size": 40,
        "num_experts": 5,
        "num_experts_per_tok": 3,
        "norm_topk_prob": False,
        "mlp_only_layers": [1],
        "tie_word_embeddings": True,
    },
    "glm4_moe-odd": SMALL
    | {
        "head_dim": 20,
        "hidden_size": 72,
        "moe_intermediate_size": 24,
        "n_routed_experts": 12,
        "n_shared_experts": 2,
        "num_experts_per_tok": 4,
        "n_group": 4,
        "topk_group": 2,
        "first_k_dense_replace": 2,
        "routed_scaling_factor": 2.5,
        "use_qk_norm": False,
        "attention_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.6},
    },
    "glm4v_moe-odd": SMALL
    | {
        "head_dim": 24,
        "moe_intermediate_size": 36,
        "n_routed_experts": 6,
        "num_experts_per_tok": 1,
        "norm_topk_prob": False,
        "first_k_dense_replace": 0,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 500.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [1, 2, 3],
        },
    },
}


def family_of(name: str) -> str:
    """The family of a shape."""
    return name.partition("-")[0]
