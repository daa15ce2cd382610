"""Transformer Engine's modules take the places of Megatron's own, at every depth, and nothing else changes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from components.megatron.platform import load_platform

load_platform("cpu").install()


class Column:
    """In the place of a column-parallel linear."""


class Row:
    """In the place of a row-parallel linear."""


class Norm:
    """In the place of a norm."""

    def __init__(self, config: Any, width: int, eps: float) -> None:
        self.shape = (width, eps)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    from components.models import engine

    table = {ColumnParallelLinear: Column, RowParallelLinear: Row, WrappedTorchNorm: Norm}
    monkeypatch.setattr(engine, "_engine_modules", lambda: table)


def config(engine: bool) -> Any:
    return SimpleNamespace(
        qk_layernorm=True, normalization="RMSNorm", transformer_engine=engine, hidden_size=8, layernorm_epsilon=1e-6
    )


def test_a_layer_is_built_of_the_engines_modules(stand_ins: None) -> None:
    from components.models.decoder import PostNormAdd, local_layer_spec
    from components.models.dense import Biases

    own, engines = (local_layer_spec(config(engine), Biases(mlp=True), post_norms=True) for engine in (False, True))
    attention, mlp = engines.submodules.self_attention.submodules, engines.submodules.mlp.submodules
    assert (attention.linear_qkv, attention.linear_proj) == (mlp.linear_fc1, mlp.linear_fc2) == (Column, Row)
    assert attention.q_layernorm is attention.k_layernorm is engines.submodules.input_layernorm is Norm
    assert attention.core_attention is own.submodules.self_attention.submodules.core_attention
    assert engines.submodules.self_attention.module is own.submodules.self_attention.module
    assert Column not in (own.submodules.mlp.submodules.linear_fc1,)
    assert PostNormAdd(config(True)).norm.shape == (8, 1e-6)


def test_experts_and_the_last_norm_too(stand_ins: None) -> None:
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.torch_norm import WrappedTorchNorm
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

    from components.models.engine import engine_spec

    layer = get_gpt_layer_local_spec(num_experts=4, normalization="RMSNorm")
    block = engine_spec(TransformerBlockSubmodules(layer_specs=[layer] * 2, layer_norm=WrappedTorchNorm), config(True))
    assert block.layer_norm is Norm and len(block.layer_specs) == 2
    parts = block.layer_specs[1].submodules.mlp.submodules
    for mlp in (parts.experts.submodules, parts.shared_experts.submodules):
        assert (mlp.linear_fc1, mlp.linear_fc2) == (Column, Row)
    assert parts.router is layer.submodules.mlp.submodules.router
