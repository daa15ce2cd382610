"""What backward computes again instead of keeping it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RECOMPUTE: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    # Megatron's own choice here, the attention core, saves nothing: no scores are kept (components.models.attention).
    "selective": {"recompute_granularity": "selective", "recompute_modules": ["mlp", "moe"]},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}
"""trainer.recompute -> fields of Megatron's TransformerConfig.

selective: the inside of the feed-forward layers, a third of the forward's work for most of what a layer keeps. full:
layers one by one, so a forward's work for all but their inputs (Chen et al. 2016, arXiv:1604.06174).
"""
