"""What mixture-of-experts families share: router keywords, the layer spec, the weight table.

No auxiliary loss, no dropped token: the engine has neither, and the trainer must give the engine's log-probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from components.models.base import HFConfig, Rule, needed, text_part
from components.models.dense import (
    HERE,
    PRE_NORMS,
    Biases,
    attention_rules,
    mlp_rules,
    outer_rules,
    transformer_keywords,
)
from components.models.layouts import Replicated
from components.models.rope import Rope, rope_of
from slime_launch.errors import ComponentError

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
    from megatron.core.transformer.transformer_config import TransformerConfig


@dataclass(frozen=True)
class Experts:
    """How a decoder mixes experts.

    count: routed experts of a layer. layers: number of layers. sparse: those that have experts; the others are dense.
    shared: width of the expert that every token visits, 0 without one. bias: whether the router has a selection bias.
    """

    count: int
    layers: int
    sparse: tuple[int, ...]
    shared: int = 0
    bias: bool = False

    @property
    def dense(self) -> tuple[int, ...]:
        """The layers with a plain MLP."""
        return tuple(number for number in range(self.layers) if number not in self.sparse)


def moe_keywords(hf: HFConfig, experts: Experts, biases: Biases, *, partial: bool = False) -> dict[str, Any]:
    """TransformerConfig keywords of a gated decoder with experts, but for its router's scores.

    partial: as in ``transformer_keywords``. Raises ComponentError for missing keys and for no expert anywhere.
    """
    text = text_part(hf)
    needed(text, ("moe_intermediate_size", "num_experts_per_tok"))
    if not experts.sparse:
        raise ComponentError("config.json: no layer has experts; name the dense family in model.family")
    keywords = transformer_keywords(hf, biases, partial=partial) | {
        "num_moe_experts": experts.count,
        "moe_ffn_hidden_size": text["moe_intermediate_size"],
        "moe_layer_freq": [int(number in experts.sparse) for number in range(experts.layers)],
        "moe_router_topk": text["num_experts_per_tok"],
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "none",
    }
    return keywords | ({"moe_shared_expert_intermediate_size": experts.shared} if experts.shared else {})


def softmax_router(text: HFConfig) -> dict[str, Any]:
    """TransformerConfig keywords of a router that scores by softmax over all experts.

    Renormalised over the chosen ones (``norm_topk_prob``) that is a softmax over the chosen ones alone.
    Raises ComponentError for one renormalised expert: its weight would always be 1.
    """
    norm, topk = bool(text.get("norm_topk_prob", False)), text["num_experts_per_tok"]
    if norm and topk == 1:
        raise ComponentError(
            "config.json: norm_topk_prob=true with num_experts_per_tok=1 gives every expert the weight 1, so that its "
            "router cannot learn; Megatron has no such router"
        )
    return {"moe_router_score_function": "softmax", "moe_router_pre_softmax": not norm}


def sigmoid_router(text: HFConfig) -> dict[str, Any]:
    """TransformerConfig keywords of a router that scores by sigmoid and selects with a bias (arXiv:2408.15664).

    The bias stays as the checkpoint has it; ``model.transformer.moe_router_bias_update_rate`` lets it move, as in
    pre-training. Raises ComponentError where Megatron's router differs from the checkpoint's.
    """
    topk, groups, group_topk = text["num_experts_per_tok"], text.get("n_group", 1), text.get("topk_group", 1)
    if bool(text.get("norm_topk_prob", True)) != (topk > 1):
        raise ComponentError(
            f"config.json: norm_topk_prob={text.get('norm_topk_prob', True)} with num_experts_per_tok={topk}: Megatron "
            "renormalises the weights exactly when a token has more than one expert"
        )
    grouped = {"moe_router_num_groups": groups, "moe_router_group_topk": group_topk} if groups > 1 else {}
    if grouped and topk != 2 * group_topk:
        raise ComponentError(
            f"config.json: n_group={groups}, topk_group={group_topk}, num_experts_per_tok={topk}: the checkpoint rates "
            "a group by its two best experts, Megatron by its num_experts_per_tok/topk_group best; these must agree"
        )
    return grouped | {
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_bias_update_rate": 0.0,
        "moe_router_topk_scaling_factor": text.get("routed_scaling_factor", 1.0),
    }


def glm_experts(hf: HFConfig) -> Experts:
    """GLM-4.5's: ``first_k_dense_replace`` dense layers, then experts, shared ones beside them.

    Raises ComponentError for missing keys, and without a shared expert, which transformers cannot build either.
    """
    text = text_part(hf)
    needed(text, ("num_hidden_layers", "n_routed_experts", "moe_intermediate_size"))
    layers, shared = text["num_hidden_layers"], text.get("n_shared_experts", 1)
    if not shared:
        raise ComponentError("config.json: n_shared_experts=0: GLM's layers are built with a shared expert")
    return Experts(
        count=text["n_routed_experts"],
        layers=layers,
        sparse=tuple(range(text.get("first_k_dense_replace", 1), layers)),
        shared=shared * text["moe_intermediate_size"],
        bias=True,
    )


def glm_rope(hf: HFConfig) -> Rope:
    """Rotary positions of GLM-4.5 and GLM-4.5V: half of a head's channels turn unless config.json says otherwise."""
    return rope_of(text_part(hf), partial_rotary_factor=0.5)


def block_spec(config: TransformerConfig, vp_stage: int | None) -> TransformerBlockSubmodules:
    """This stage's layers, dense or with experts as ``config.moe_layer_freq`` says; as in ``local_layer_spec``."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    from components.models.attention import TorchAttention
    from components.models.engine import engine_spec

    spec = get_gpt_decoder_block_spec(
        config, use_transformer_engine=False, normalization=config.normalization, vp_stage=vp_stage
    )
    for layer in spec.layer_specs:
        layer.submodules.self_attention.submodules.core_attention = TorchAttention
    # Megatron's choice for the last norm is Apex's where there is one, which has no RMSNorm.
    return engine_spec(replace(spec, layer_norm=WrappedTorchNorm), config)


def moe_rules(hf: HFConfig, experts: Experts, biases: Biases, *, root: str, qk_norm: bool) -> tuple[Rule, ...]:
    """The whole decoder's weight table; ``root`` is how its names start in the checkpoint."""
    there = root + "layers.{}."
    shared = _mlp(there, "mlp.shared_experts.", "mlp.shared_experts.", experts.sparse) if experts.shared else ()
    return (
        *outer_rules(hf, root),
        *(Rule(HERE + f"{mine}.weight", (there + f"{name}.weight",), Replicated()) for mine, name in PRE_NORMS.items()),
        *attention_rules(text_part(hf), there, biases, qk_norm),
        *_mlp(there, "mlp.", "mlp.", experts.dense),
        *_routing(there + "mlp.gate.", experts),
        *shared,
        *(rule for number in range(experts.count) for rule in _expert(there, number, experts.sparse)),
    )


def _expert(there: str, number: int, layers: tuple[int, ...]) -> tuple[Rule, ...]:
    return _mlp(there, f"mlp.experts.local_experts.{number}.", f"mlp.experts.{number}.", layers)


def _mlp(there: str, mine: str, theirs: str, layers: tuple[int, ...]) -> tuple[Rule, ...]:
    """A gated MLP of some layers under other names."""
    return tuple(
        replace(
            rule,
            megatron=rule.megatron.replace("mlp.", mine, 1),
            hf=tuple(name.replace("mlp.", theirs, 1) for name in rule.hf),
            layers=layers,
        )
        for rule in mlp_rules(there, Biases(), merged=False)
    )


def _routing(there: str, experts: Experts) -> tuple[Rule, ...]:
    names = {"weight": "weight"} | ({"expert_bias": "e_score_correction_bias"} if experts.bias else {})
    return tuple(
        Rule(HERE + f"mlp.router.{mine}", (there + theirs,), Replicated(), layers=experts.sparse)
        for mine, theirs in names.items()
    )
