"""Shapes at which each dense family is tried: the tiny one, and odd ones that a careless mapping would get wrong."""

from __future__ import annotations

from typing import Any

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
YARN_MSCALE_ROPE = YARN_ROPE | {"mscale": 1.0, "mscale_all_dim": 0.8, "beta_fast": 16, "truncate": False}
ODD: dict[str, Any] = {
    "num_hidden_layers": 3,
    "num_key_value_heads": 1,
    "head_dim": 24,
    "intermediate_size": 96,
    "vocab_size": 113,
    "rms_norm_eps": 1e-3,
}
"""Three layers, one key-value head, heads that are not the hidden size cut up."""

SHAPES: dict[str, dict[str, Any]] = {
    "llama3": {},
    "llama3-odd": ODD | {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3_ROPE},
    "llama3-attention": ODD | {"attention_bias": True, "tie_word_embeddings": True},
    "llama3-mlp": {"mlp_bias": True, "rope_parameters": YARN_ROPE | {"attention_factor": 0.8}},
    "qwen2": {},
    "qwen2-odd": ODD | {"tie_word_embeddings": False, "rope_parameters": YARN_ROPE},
    "qwen3": {},
    "qwen3-odd": ODD | {"attention_bias": True, "tie_word_embeddings": True, "rope_parameters": YARN_MSCALE_ROPE},
    "glm4": {},
    "glm4-odd": ODD
    | {
        "attention_bias": False,
        "tie_word_embeddings": True,
        "rope_parameters": YARN_ROPE | {"partial_rotary_factor": 0.5},
    },
    "qwen2_5_vl": {},
    "qwen2_5_vl-odd": {
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "intermediate_size": 96,
        "vocab_size": 113,
        "tie_word_embeddings": True,
        "rope_parameters": YARN_ROPE | {"mrope_section": [1, 3, 4]},
        "vision_config": {"depth": 3, "window_size": 112, "fullatt_block_indexes": [2]},
    },
    "glm_omni-odd": {
        "num_hidden_layers": 3,
        "num_key_value_heads": 1,
        "rope_parameters": LLAMA3_ROPE | {"partial_rotary_factor": 0.5, "mrope_section": [1, 3, 4]},
    },
}
"""Name (family, then what is odd) -> overrides of the text part of the tiny config.json."""


def family_of(name: str) -> str:
    """The family of a shape."""
    return name.partition("-")[0]
