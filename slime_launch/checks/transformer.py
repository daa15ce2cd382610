"""Rules about Megatron's own settings: ``model.transformer`` and ``trainer.optim``."""

from __future__ import annotations

from collections.abc import Iterator

from slime_launch.annotations import fault
from slime_launch.checks.facts import Facts, Rule
from slime_launch.errors import Problem
from slime_launch.megatron_source import transformer_fields
from slime_launch.schema.build import nearest

SET_ELSEWHERE = {
    "recompute_granularity": "trainer.recompute",
    "tensor_model_parallel_size": "trainer.parallel.tp",
    "pipeline_model_parallel_size": "trainer.parallel.pp",
    "virtual_pipeline_model_parallel_size": "trainer.parallel.vpp",
    "expert_model_parallel_size": "trainer.parallel.ep",
    "context_parallel_size": "trainer.parallel.cp",
    "sequence_parallel": "trainer.parallel.sp",
    "bf16": "trainer.precision",
    "params_dtype": "trainer.precision",
    "pipeline_dtype": "trainer.precision",
}
"""TransformerConfig field -> the key that says the same."""
READ_FROM_CHECKPOINT = (
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels",
    "num_moe_experts", "moe_ffn_hidden_size", "moe_layer_freq", "moe_shared_expert_intermediate_size",
)  # fmt: skip


def transformer_names_are_free(f: Facts) -> Iterator[Problem]:
    """model.transformer sets fields that exist, that no other key sets and that are no shape of the weights."""
    known = transformer_fields()
    for name, value in f.config.model.transformer.items():
        key = f"model.transformer.{name}"
        if name in SET_ELSEWHERE:
            place = SET_ELSEWHERE[name]
            yield Problem(key, value, f"{place} is where this is set", f"set {place}, and take this out")
        elif name in READ_FROM_CHECKPOINT:
            reason = "a shape of the weights, which is read from config.json"
            yield Problem(key, value, reason, "take this out; another shape is another checkpoint")
        elif known and name not in known:
            reason = "the installed Megatron-Core's TransformerConfig has no such field"
            yield Problem(key, value, reason, nearest(name, known))
        elif known and (wrong := fault(value, known[name])):
            yield Problem(key, value, wrong, "see Megatron-Core's TransformerConfig")


def learning_rate_falls(f: Facts) -> Iterator[Problem]:
    """A schedule decays towards its least learning rate."""
    optim = f.config.trainer.optim
    if optim.min_lr > optim.lr:
        reason = f"above trainer.optim.lr={optim.lr}, which decays towards it"
        yield Problem("trainer.optim.min_lr", optim.min_lr, reason, f"give at most {optim.lr}")


RULES: tuple[Rule, ...] = (transformer_names_are_free, learning_rate_falls)
