"""Families as data: config.json to keywords, refusals, multimodal positions."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from components.models.base import load_family, text_part
from components.models.registry import FAMILIES, families
from slime_launch.errors import ComponentError
from tests.components.megatron.helpers import ROOT, image_prompt, model_class, tiny_config

MODELS = ROOT / "components" / "models"
REAL = sorted(str(file.relative_to(MODELS)) for file in MODELS.glob("*/configs/*.json"))
IMAGES = ("glm_omni", "qwen2_5_vl")
DENSE = ("llama3", "qwen2", "qwen3", "glm4", "qwen2_5_vl", "glm_omni")


@pytest.mark.parametrize("family", DENSE)
def test_shapes_come_from_config_json(family: str) -> None:
    config = tiny_config(family)
    text = config.get("text_config", config)
    text |= {"num_hidden_layers": 5, "intermediate_size": 77}
    keywords = load_family(family).transformer(config)
    assert (keywords["num_layers"], keywords["ffn_hidden_size"]) == (5, 77)
    assert load_family(family).gpt(config)["vocab_size"] == text["vocab_size"]


@pytest.mark.parametrize("file", REAL)
def test_shipped_config_json_is_served_by_the_family_of_its_folder(file: str) -> None:
    config = json.loads((MODELS / file).read_text())
    family = load_family("auto", config)
    assert family is load_family(file.partition("/")[0])
    family.check(config)
    text = text_part(config)
    keywords, gpt = family.transformer(config), family.gpt(config)
    assert keywords["kv_channels"] == text.get("head_dim", text["hidden_size"] // text["num_attention_heads"])
    assert keywords["num_query_groups"] == text["num_key_value_heads"]
    assert gpt["rotary_base"] == text["rope_parameters"]["rope_theta"]
    assert 2 * sum(family.rope(config).sections) == gpt["rotary_percent"] * keywords["kv_channels"]
    names = [hf for rule in family.rules(config) for hf in rule.hf if not rule.tied]
    assert len(set(names)) == len(names)


def test_published_qwen2_5_vl_config_without_text_config_means_the_same() -> None:
    new = tiny_config("qwen2_5_vl") | {"tie_word_embeddings": True}
    text = dict(new["text_config"])
    rope = text.pop("rope_parameters")
    old = {**text, **{key: value for key, value in new.items() if key != "text_config"}}
    old |= {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}
    family = load_family("qwen2_5_vl")
    for read in (family.transformer, family.gpt, family.rules):
        assert read(old) == read(new)
    assert family.rope(old).sections == family.rope(new).sections == (4, 6, 6)
    inner = new | {"tie_word_embeddings": False, "text_config": new["text_config"] | {"tie_word_embeddings": True}}
    assert family.gpt(inner) == family.gpt(new)


@pytest.mark.parametrize("name", ["llama", "../qwen3", "base"])
def test_an_unknown_family_is_named(name: str) -> None:
    with pytest.raises(ComponentError, match=r"model\.family"):
        load_family(name)


def test_the_registry_is_what_the_families_say() -> None:
    folders = sorted(folder.parent.name for folder in MODELS.glob("*/__init__.py"))
    said = {name: folder for folder in folders for name in load_family(folder).architectures}
    assert families() == said == json.loads(FAMILIES.read_text())


def test_the_registry_needs_the_standard_library_only() -> None:
    heavy = "{'torch', 'numpy', 'transformers', 'megatron', 'ray', 'hydra'}"
    code = f"import sys, components.models.registry as r; r.families(); print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT) == "[]\n"


def test_auto_says_what_it_knows() -> None:
    with pytest.raises(ComponentError, match=r"MambaForCausalLM.*LlamaForCausalLM.*Qwen3ForCausalLM"):
        load_family("auto", {"architectures": ["MambaForCausalLM"]})
    with pytest.raises(ComponentError, match=r"architectures=\[\]"):
        load_family("auto", {})


def test_a_foreign_architecture_is_refused() -> None:
    with pytest.raises(ComponentError, match="Qwen3ForCausalLM"):
        load_family("qwen3").check({"architectures": ["LlamaForCausalLM"]})


@pytest.mark.parametrize("family", DENSE)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "SwiGLU"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types.*sliding_attention"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0}}, "longrope"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 1]}}, "mrope_section"),
    ],
)
def test_what_no_family_serves_is_refused(family: str, change: dict[str, Any], message: str) -> None:
    refused(family, change, message)


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("qwen3", {"head_dim": None}, "head_dim"),
        ("glm4", {"head_dim": None}, "head_dim"),
        ("llama3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("qwen2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("qwen2_5_vl", {"head_dim": 16}, "head_dim|mrope_section"),
        ("qwen2_5_vl", {"rope_parameters": {"rope_theta": 1e4}}, "mrope_section"),
        ("glm_omni", {"rope_parameters": {"rope_theta": 1e4}}, "mrope_section"),
        ("glm_omni", {"head_dim": 7}, "head_dim"),
        ("glm_omni", {"attention_bias": False}, "attention_bias"),
    ],
)
def test_what_one_family_does_not_serve_is_refused(family: str, change: dict[str, Any], message: str) -> None:
    refused(family, change, message)


def refused(family: str, change: dict[str, Any], message: str) -> None:
    config = tiny_config(family)
    config.get("text_config", config).update(change)
    with pytest.raises(ComponentError, match=message):
        load_family(family).transformer(config) | load_family(family).gpt(config)


def test_quantised_weights_are_refused() -> None:
    with pytest.raises(ComponentError, match="quantization_config"):
        load_family("llama3").check(tiny_config("llama3") | {"quantization_config": {"quant_method": "fp8"}})


@pytest.mark.parametrize("family", IMAGES)
@pytest.mark.parametrize(
    ("grids", "text"),
    [([], 9), ([(1, 4, 4)], 3), ([(1, 2, 8), (1, 6, 4)], 1), ([(1, 4, 4), (1, 8, 2), (1, 2, 2)], 5)],
)
def test_positions_are_those_of_transformers(family: str, grids: list[tuple[int, int, int]], text: int) -> None:
    config = tiny_config(family)
    ids, media = image_prompt(np.random.default_rng(0), grids, text, family)
    ids += [20, 21]
    mine = load_family(family).positions(config, ids, media if grids else {})
    ids_1S = torch.tensor([ids])
    grid = torch.from_numpy(media["image_grid_thw"]) if grids else None
    kind = model_class(config)
    with torch.device("meta"):
        model = kind(kind.config_class.from_dict(config)).model
    theirs, _ = model.get_rope_index(ids_1S, (ids_1S == config["image_token_id"]).int(), grid)
    np.testing.assert_array_equal(mine, theirs[:, 0].numpy())


@pytest.mark.parametrize("family", IMAGES)
def test_a_sampled_image_token_is_text(family: str) -> None:
    config = tiny_config(family)
    ids, media = image_prompt(np.random.default_rng(0), [(1, 4, 4)], 2, family)
    positions, sampled = load_family(family).positions, [*ids, config["image_token_id"], 20]
    np.testing.assert_array_equal(positions(config, sampled, media), positions(config, [*ids, 20, 20], media))


@pytest.mark.parametrize("family", IMAGES)
def test_placeholders_and_grids_must_agree(family: str) -> None:
    ids, _ = image_prompt(np.random.default_rng(0), [(1, 4, 4)], 2, family)
    with pytest.raises(ComponentError, match="placeholders"):
        load_family(family).positions(tiny_config(family), ids, {"image_grid_thw": np.array([[1, 8, 4]])})
