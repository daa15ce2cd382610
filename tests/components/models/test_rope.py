"""Rotary positions: frequencies and gains of transformers, old and new config.json, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.models.rope import rope_of
from slime_launch.errors import ComponentError

POSITIONS = torch.tensor([0.0, 1.0, 1000.0, 8191.0, 32768.0, 131071.0, 1048575.0])
LLAMA31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
QWEN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def text(rope: dict[str, Any], **more: Any) -> dict[str, Any]:
    shape = {"hidden_size": 4096, "num_attention_heads": 32, "head_dim": 128, "max_position_embeddings": 131072}
    return shape | {"rope_parameters": {"rope_theta": 500000.0} | rope} | more


def theirs(config: dict[str, Any]) -> tuple[torch.Tensor, float]:
    """Frequencies and gain by transformers."""
    from transformers import Glm4Config
    from transformers.models.glm4.modeling_glm4 import Glm4RotaryEmbedding

    embedding = Glm4RotaryEmbedding(Glm4Config.from_dict(config))
    return embedding.inv_freq, embedding.attention_scaling


def same(config: dict[str, Any]) -> bool:
    rope = rope_of(config)
    inv_freq_C, gain = theirs(config)
    return torch.equal(rope.frequencies(), inv_freq_C) and rope.gain == pytest.approx(gain, abs=1e-12)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default"},
        {"rope_type": "default", "rope_theta": 1000000},
        {"rope_type": "linear", "factor": 3.0},
        LLAMA31,
        LLAMA31 | {"factor": 32.0, "high_freq_factor": 2.5},
        QWEN,
        QWEN | {"attention_factor": 0.7},
        QWEN | {"mscale": 1.0, "mscale_all_dim": 0.7, "beta_fast": 48, "beta_slow": 2},
        QWEN | {"truncate": False, "rope_theta": 1000000.0},
        QWEN | {"factor": None},
    ],
)
@pytest.mark.parametrize("partial", [1.0, 0.5])
def test_frequencies_are_those_of_transformers_to_the_bit(rope: dict[str, Any], partial: float) -> None:
    assert same(text(rope | {"partial_rotary_factor": partial}))


@given(
    st.sampled_from([8, 24, 64, 80, 128]),
    st.floats(1.0, 64.0),
    st.sampled_from([64, 4096, 8192, 32768]),
    st.floats(1e3, 1e7),
    st.sampled_from(["llama3", "yarn"]),
)
def test_any_scaling_is_that_of_transformers(head: int, factor: float, original: int, theta: float, kind: str) -> None:
    numbers = {"rope_theta": theta, "factor": factor, "original_max_position_embeddings": original}
    extra = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    assert same(text({"rope_type": kind, "partial_rotary_factor": 1.0} | numbers | extra, head_dim=head))


def test_scaling_is_seen_beyond_the_original_context() -> None:
    plain, scaled = (rope_of(text(rope)).frequencies() for rope in ({}, LLAMA31))
    assert torch.equal(plain[:24], scaled[:24])
    assert torch.allclose(plain[-20:] / 8, scaled[-20:], rtol=1e-6)
    assert (torch.outer(POSITIONS, plain).cos() - torch.outer(POSITIONS, scaled).cos()).abs().max() > 0.5


@pytest.mark.parametrize("rope", [{"rope_type": "default"}, LLAMA31, QWEN | {"attention_factor": 0.9}])
def test_keys_of_transformers_4_mean_the_same(rope: dict[str, Any]) -> None:
    new = text(rope | {"partial_rotary_factor": 0.5})
    old = {key: value for key, value in new.items() if key != "rope_parameters"}
    spelt = {("type" if key == "rope_type" else key): value for key, value in rope.items()}
    older = old | {"rope_theta": 500000.0, "rope_scaling": spelt, "partial_rotary_factor": 0.5}
    assert torch.equal(rope_of(new).frequencies(), rope_of(older).frequencies())
    assert rope_of(new).gain == rope_of(older).gain


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "glm4", "qwen2_5_vl_text"])
def test_a_base_that_is_not_given_is_that_of_transformers(name: str) -> None:
    from transformers import AutoConfig

    shape = {"hidden_size": 64, "num_attention_heads": 2, "head_dim": 32, "max_position_embeddings": 256}
    default = AutoConfig.for_model(name).default_theta
    assert rope_of(shape | {"model_type": name}).theta == default


def test_published_qwen2_5_vl_positions_are_plain_with_sections() -> None:
    shape = {"hidden_size": 3584, "num_attention_heads": 28, "max_position_embeddings": 128000, "rope_theta": 1e6}
    rope = rope_of(shape | {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}})
    assert (rope.kind, rope.sections, rope.gain, rope.channels) == ("default", (16, 24, 24), 1.0, 128)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "longrope", "factor": 2.0}, "rope_type='longrope'"),
        ({"rope_type": "dynamic", "factor": 2.0}, "rope_type='dynamic'"),
        ({"rope_type": "yarn"}, "factor"),
        ({"rope_type": "linear"}, "factor"),
        (LLAMA31 | {"high_freq_factor": None}, "high_freq_factor"),
        ({"rope_type": "default", "mrope_interleaved": True}, "mrope_interleaved"),
        ({"full_attention": {"rope_type": "default"}}, "full_attention"),
        ({"mrope_section": [16, 24, 25]}, "mrope_section"),
        ({"partial_rotary_factor": 0.26}, "partial_rotary_factor"),
    ],
)
def test_what_cannot_be_served_names_its_key(rope: dict[str, Any], message: str) -> None:
    with pytest.raises(ComponentError, match=message):
        rope_of(text(rope | {"partial_rotary_factor": rope.get("partial_rotary_factor", 1.0)}))
