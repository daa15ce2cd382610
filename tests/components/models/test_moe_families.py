"""Families with experts as data: which layers have them, routers that Megatron does not have, names."""

from __future__ import annotations

import json
from typing import Any

import pytest

from components.models.base import load_family
from slime_launch.errors import ComponentError
from tests.components.megatron.helpers import ROOT
from tests.components.models.moe_shapes import FAMILIES

REAL = {
    "qwen3-30b-a3b": ("qwen3_moe", 48, 48 * 128 * 2),
    "qwen3-235b-a22b": ("qwen3_moe", 94, 94 * 128 * 2),
    "glm-4.5": ("glm4_moe", 89, 89 * 160 * 2),
    "glm-4.5v": ("glm4v_moe", 45, 45 * 128 * 2),
}


def config_of(family: str, name: str = "tiny") -> dict[str, Any]:
    file = ROOT / "components" / "models" / family / "configs" / f"{name}.json"
    config: dict[str, Any] = json.loads(file.read_text())
    return config


@pytest.mark.parametrize("name", REAL)
def test_real_models_have_their_experts(name: str) -> None:
    family, sparse, experts = REAL[name]
    hf = config_of(family, name)
    load_family(family).check(hf)
    keywords = load_family(family).transformer(hf)
    assert sum(keywords["moe_layer_freq"]) == sparse and len(keywords["moe_layer_freq"]) == keywords["num_layers"]
    rules = load_family(family).rules(hf)
    rows = sum(len(rule.layers or ()) for rule in rules if ".local_experts." in rule.megatron)
    assert rows == experts
    assert len({rule.megatron for rule in rules}) == len(rules)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_loss_that_the_engine_does_not_have(family: str) -> None:
    keywords = load_family(family).transformer(config_of(family))
    assert keywords["moe_router_load_balancing_type"] == "none" and keywords["moe_router_dtype"] == "fp32"
    assert not {"moe_aux_loss_coeff", "moe_z_loss_coeff", "moe_expert_capacity_factor"} & keywords.keys()


@pytest.mark.parametrize(
    ("change", "sparse"),
    [
        ({}, [1, 1, 1, 1]),
        ({"mlp_only_layers": [0, 2]}, [0, 1, 0, 1]),
        ({"decoder_sparse_step": 2}, [0, 1, 0, 1]),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [3]}, [0, 1, 0, 0]),
        ({"mlp_only_layers": None}, [1, 1, 1, 1]),
    ],
)
def test_qwen3_chooses_layers_as_transformers_does(change: dict[str, Any], sparse: list[int]) -> None:
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    hf = config_of("qwen3_moe") | {"num_hidden_layers": 4} | change
    assert load_family("qwen3_moe").transformer(hf)["moe_layer_freq"] == sparse
    with torch.device("meta"):
        layers = Qwen3MoeForCausalLM(Qwen3MoeConfig.from_dict(hf)).model.layers
    assert [int(hasattr(layer.mlp, "experts")) for layer in layers] == sparse


def test_both_names_of_the_number_of_experts() -> None:
    hf = config_of("qwen3_moe")
    hf["num_local_experts"] = hf.pop("num_experts")
    assert load_family("qwen3_moe").transformer(hf)["num_moe_experts"] == 8


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("qwen3_moe", {"attention_bias": True}, "attention_bias"),
        ("qwen3_moe", {"num_experts_per_tok": 1}, "norm_topk_prob"),
        ("qwen3_moe", {"mlp_only_layers": [0, 1]}, "no layer has experts"),
        ("qwen3_moe", {"num_experts": None}, "no num_experts"),
        ("glm4_moe", {"n_routed_experts": None}, "no n_routed_experts"),
        ("glm4v_moe", {"moe_intermediate_size": None}, "no moe_intermediate_size"),
        ("qwen3_moe", {"use_sliding_window": True}, "use_sliding_window"),
        ("glm4_moe", {"norm_topk_prob": False}, "norm_topk_prob=False"),
        ("glm4_moe", {"num_experts_per_tok": 1}, "norm_topk_prob=True"),
        ("glm4_moe", {"n_group": 4, "topk_group": 2}, "n_group=4"),
        ("glm4_moe", {"n_shared_experts": 0}, "shared"),
        ("glm4v_moe", {"n_shared_experts": None}, "shared"),
        ("glm4v_moe", {"use_qk_norm": True}, "use_qk_norm"),
        ("glm4v_moe", {"rope_parameters": {"rope_type": "default", "rope_theta": 1.0}}, "mrope_section"),
    ],
)
def test_what_megatron_does_not_have_is_refused(family: str, change: dict[str, Any], message: str) -> None:
    hf = config_of(family)
    hf.get("text_config", hf).update(change)
    with pytest.raises(ComponentError, match=message):
        load_family(family).transformer(hf)


@pytest.mark.parametrize("family", ["glm4_moe", "glm4v_moe"])
def test_half_of_a_head_turns_where_nothing_is_said(family: str) -> None:
    hf = config_of(family)
    hf.get("text_config", hf)["rope_parameters"].pop("partial_rotary_factor")
    assert load_family(family).rope(hf).channels == 16
    assert load_family(family).gpt(hf)["rotary_percent"] == 0.5


def test_a_flat_config_of_a_model_with_a_tower_says_the_same() -> None:
    hf, family = config_of("glm4v_moe"), load_family("glm4v_moe")
    flat = {**{key: value for key, value in hf.items() if key != "text_config"}, **hf["text_config"]}
    assert family.transformer(flat) == family.transformer(hf)


def test_towers_take_the_trainers_type_and_keep_the_frequencies() -> None:
    import torch

    from components.models.vision import in_type

    tower = torch.nn.Linear(2, 2)
    tower.register_buffer("inv_freq", torch.tensor([1 / 3]), persistent=False)
    in_type(tower, torch.bfloat16)
    assert tower.weight.dtype == torch.bfloat16 and tower.inv_freq.dtype == torch.float32


def test_experts_and_layers_are_numbered_over_all_ranks() -> None:
    from components.megatron.platform import load_platform

    load_platform("cpu").install()
    from components.megatron.build import shifted

    name = "decoder.layers.1.mlp.experts.local_experts.2.linear_fc1.weight"
    assert shifted(name, 4, 16) == "decoder.layers.5.mlp.experts.local_experts.18.linear_fc1.weight"
    assert shifted("encoders.vision.blocks.1.mlp.weight", 4, 16) == "encoders.vision.blocks.1.mlp.weight"
