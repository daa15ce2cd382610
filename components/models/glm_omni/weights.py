"""GLM-Omni's weight table: the decoder. The towers map name by name (``Encoder.prefix``)."""

from __future__ import annotations

from components.models.base import HFConfig, Rule
from components.models.dense import GLM_NORMS, Biases, dense_rules

BIASES = Biases(qkv=True)


def rules(hf: HFConfig) -> tuple[Rule, ...]:
    """Every parameter of the decoder, its Hugging Face names and its layout."""
    return dense_rules(hf, BIASES, root="model.language_model.", norms=GLM_NORMS, merged=True)
