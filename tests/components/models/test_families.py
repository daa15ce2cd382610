"""Families as data: config.json to keywords, refusals, multimodal positions."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from components.models.base import load_family
from slime_launch.errors import ComponentError
from tests.components.megatron.helpers import ROOT, image_prompt


def tiny_config(family: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((ROOT / "components" / "models" / family / "configs" / "tiny.json").read_text())
    return config


@pytest.mark.parametrize("family", ["qwen3", "glm_omni"])
def test_shapes_come_from_config_json(family: str) -> None:
    config = tiny_config(family)
    text = config.get("text_config", config)
    text |= {"num_hidden_layers": 5, "intermediate_size": 77}
    keywords = load_family(family).transformer(config)
    assert (keywords["num_layers"], keywords["ffn_hidden_size"]) == (5, 77)
    assert load_family(family).gpt(config)["vocab_size"] == text["vocab_size"]


@pytest.mark.parametrize("name", ["llama", "../qwen3", "base"])
def test_an_unknown_family_is_named(name: str) -> None:
    with pytest.raises(ComponentError, match=r"model\.family"):
        load_family(name)


def test_a_foreign_architecture_is_refused() -> None:
    with pytest.raises(ComponentError, match="Qwen3ForCausalLM"):
        load_family("qwen3").check({"architectures": ["LlamaForCausalLM"]})


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("qwen3", {"hidden_act": "gelu"}, "SwiGLU"),
        ("qwen3", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "factor"),
        ("glm_omni", {"head_dim": 7}, "head_dim"),
        ("glm_omni", {"rope_parameters": {"rope_theta": 1.0, "mrope_section": [1, 1, 1]}}, "mrope_section"),
    ],
)
def test_what_is_not_mapped_is_refused(family: str, change: dict[str, Any], message: str) -> None:
    config = tiny_config(family)
    config.get("text_config", config).update(change)
    with pytest.raises(ComponentError, match=message):
        load_family(family).transformer(config) | load_family(family).gpt(config)


@pytest.mark.parametrize(
    ("grids", "text"),
    [([], 9), ([(1, 4, 4)], 3), ([(1, 2, 8), (1, 6, 4)], 1), ([(1, 4, 4), (1, 8, 2), (1, 2, 2)], 5)],
)
def test_positions_are_those_of_transformers(grids: list[tuple[int, int, int]], text: int) -> None:
    from transformers import Glm4vConfig
    from transformers.models.glm4v.modeling_glm4v import Glm4vModel

    config = tiny_config("glm_omni")
    ids, media = image_prompt(np.random.default_rng(0), grids, text)
    ids += [20, 21]
    positions = load_family("glm_omni").positions
    mine = positions(config, ids, media if grids else {})
    ids_1S = torch.tensor([ids])
    grid = torch.from_numpy(media["image_grid_thw"]) if grids else None
    theirs, _ = Glm4vModel(Glm4vConfig.from_dict(config)).get_rope_index(ids_1S, (ids_1S == 14).int(), grid)
    np.testing.assert_array_equal(mine, theirs[:, 0].numpy())


def test_a_sampled_image_token_is_text() -> None:
    config = tiny_config("glm_omni")
    ids, media = image_prompt(np.random.default_rng(0), [(1, 4, 4)], 2)
    positions = load_family("glm_omni").positions
    np.testing.assert_array_equal(positions(config, [*ids, 14, 20], media), positions(config, [*ids, 20, 20], media))


def test_placeholders_and_grids_must_agree() -> None:
    config = tiny_config("glm_omni")
    ids, _ = image_prompt(np.random.default_rng(0), [(1, 4, 4)], 2)
    positions = load_family("glm_omni").positions
    with pytest.raises(ComponentError, match="placeholders"):
        positions(config, ids, {"image_grid_thw": np.array([[1, 8, 4]])})
