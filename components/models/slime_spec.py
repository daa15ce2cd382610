"""Specs written for slime, ``spec(args, config, vp_stage)``, used unchanged.

spec:
  _target_: components.models.slime_spec.adapt
  spec: my_project.models.get_spec
  args: {num_experts: 8}
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from slime_launch.targets import resolve

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig

RENAMED: Mapping[str, Callable[[TransformerConfig], Any]] = {
    "num_experts": lambda config: config.num_moe_experts,
    "norm_epsilon": lambda config: config.layernorm_epsilon,
    "swiglu": lambda config: config.gated_linear_unit,
    "disable_bias_linear": lambda config: not config.add_bias_linear,
    "group_query_attention": lambda config: config.num_query_groups != config.num_attention_heads,
    "padded_vocab_size": lambda config: config.gpt["vocab_size"],
    "max_position_embeddings": lambda config: config.gpt["max_sequence_length"],
    "position_embedding_type": lambda config: config.gpt["position_embedding_type"],
    "rotary_base": lambda config: config.gpt["rotary_base"],
    "rotary_percent": lambda config: config.gpt["rotary_percent"],
    "untie_embeddings_and_output_weights": lambda config: not config.gpt["share_embeddings_and_output_weights"],
    "transformer_impl": lambda config: "transformer_engine" if config.transformer_engine else "local",
    "fp16_lm_cross_entropy": lambda config: False,
}
"""Command-line names of Megatron and slime that differ from TransformerConfig's fields -> what they are here."""


def adapt(config: TransformerConfig, vp_stage: int | None, spec: str, args: Mapping[str, Any] | None = None) -> Any:
    """What ``spec`` answers, called as slime calls it: positionally with (args, config, vp_stage).

    spec: dotted name, allowed as any ``_target_`` is. args: entries of its namespace over those read from ``config``.
    Raises TargetError for a name that is not allowed.
    """
    return resolve(spec)(namespace(config, args or {}), config, vp_stage)


def namespace(config: TransformerConfig, given: Mapping[str, Any]) -> Namespace:
    """slime's ``args`` as far as a spec reads it: the config's fields, those that its command line names otherwise."""
    of_config = {entry.name: getattr(config, entry.name) for entry in fields(config)}
    return Namespace(**of_config | {name: value(config) for name, value in RENAMED.items()} | dict(given))
