"""Parameters of a model from its config.json alone, tensor by tensor under Megatron's names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from slime_launch.sizes.architectures import HFConfig, Shape, architecture_of, shape_of
from slime_launch.sizes.towers import TOWERS

Split = Literal["whole", "tp", "kv", "experts"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One parameter, or all experts' equal ones together.

    name: as in a built Megatron model, a layer's without ``decoder.layers.<number>.``; ``local_experts.0`` stands for
        every expert. size: numbers in it, over all ranks.
    split: whole on every tensor-parallel rank; split over them (tp); by key-value heads, of which each rank keeps one
        at least (kv); or over the ranks of tensor and expert parallelism together (experts).
    """

    name: str
    size: int
    split: Split = "tp"


Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """A model's parameters in numbers: of one layer of each kind, how many there are, and the parts beside them.

    ``lm_head`` is 0 where it is the embedding itself. ``active``: those that work on one token of text.
    """

    embedding: int
    dense_layer: int
    num_dense_layers: int
    moe_layer_experts: int
    moe_layer_rest: int
    num_moe_layers: int
    final_norm: int
    lm_head: int
    encoder: int
    total: int
    active: int


@dataclass(frozen=True)
class Parameters:
    """Every tensor of a model.

    dense_layer, moe_layer: one layer of each kind; ``shape.sparse`` says which layer is which. lm_head: empty where it
    is tied to the embedding. encoder: the tower, several tensors in one entry. lean_encoder: see Architecture.
    """

    shape: Shape
    embedding: Tensors
    dense_layer: Tensors
    moe_layer: Tensors
    final_norm: Tensors
    lm_head: Tensors
    encoder: Tensors
    lean_encoder: bool

    @cached_property
    def counts(self) -> Counts:
        """The numbers."""
        shape, sparse = self.shape, sum(self.shape.sparse)
        dense = shape.num_hidden_layers - sparse
        experts = sum(tensor.size for tensor in self.moe_layer if tensor.split == "experts")
        rest = size_of(self.moe_layer) - experts
        decoder = size_of(self.embedding + self.final_norm + self.lm_head)
        decoder += dense * size_of(self.dense_layer) + sparse * (experts + rest)
        used = experts * shape.num_experts_per_tok // max(shape.num_experts, 1)
        return Counts(
            embedding=size_of(self.embedding),
            dense_layer=size_of(self.dense_layer),
            num_dense_layers=dense,
            moe_layer_experts=experts,
            moe_layer_rest=rest,
            num_moe_layers=sparse,
            final_norm=size_of(self.final_norm),
            lm_head=size_of(self.lm_head),
            encoder=size_of(self.encoder),
            total=decoder + size_of(self.encoder),
            active=decoder - sparse * (experts - used),
        )

    @property
    def total(self) -> int:
        """All parameters, tied ones once."""
        return self.counts.total


def size_of(tensors: Tensors) -> int:
    """Numbers in all of them."""
    return sum(tensor.size for tensor in tensors)


def parameters(hf: HFConfig) -> Parameters | None:
    """The parameters of the model that a config.json describes, exactly as many as transformers 5.19 builds.

    Buffers (a router's correction bias, rotary frequencies) and the extra layers of multi-token prediction, which
    neither transformers nor the trainer builds, are not counted.
    Returns None for an architecture that ``ARCHITECTURES`` does not have: there is no estimate then.
    Raises ConfigError when config.json's sizes are no numbers.
    """
    row, shape = architecture_of(hf), shape_of(hf)
    if row is None or shape is None:
        return None
    vocabulary = shape.vocab_size * shape.hidden_size
    return Parameters(
        shape=shape,
        embedding=(Tensor("embedding.word_embeddings.weight", vocabulary),),
        dense_layer=(*_attention(shape), *_gated("mlp", shape, shape.intermediate_size, shape.mlp_bias), *_end(shape)),
        moe_layer=(*_attention(shape), *_experts(shape), *_end(shape)) if shape.num_experts else (),
        final_norm=(Tensor("decoder.final_layernorm.weight", shape.hidden_size, "whole"),),
        lm_head=() if shape.tied else (Tensor("output_layer.weight", vocabulary),),
        encoder=tuple(Tensor(*part) for part in TOWERS[row.tower](shape.vision)) if shape.vision else (),
        lean_encoder=row.lean_encoder,
    )


def _attention(shape: Shape) -> Iterator[Tensor]:
    hidden, head = shape.hidden_size, shape.head
    queries, keys = shape.num_attention_heads * head, shape.kv_heads * head
    yield Tensor("input_layernorm.weight", hidden, "whole")
    yield Tensor("self_attention.linear_qkv.weight", hidden * queries)
    yield Tensor("self_attention.linear_qkv.weight", hidden * 2 * keys, "kv")
    if shape.attention_bias:
        yield Tensor("self_attention.linear_qkv.bias", queries)
        yield Tensor("self_attention.linear_qkv.bias", 2 * keys, "kv")
    if shape.use_qk_norm:
        yield Tensor("self_attention.q_layernorm.weight", head, "whole")
        yield Tensor("self_attention.k_layernorm.weight", head, "whole")
    yield Tensor("self_attention.linear_proj.weight", queries * hidden)
    if shape.output_bias:
        yield Tensor("self_attention.linear_proj.bias", hidden, "whole")
    if shape.post_norms:
        yield Tensor("self_attn_bda.norm.weight", hidden, "whole")
    yield Tensor("pre_mlp_layernorm.weight", hidden, "whole")


def _gated(name: str, shape: Shape, inner: int, bias: bool = False) -> Iterator[Tensor]:
    yield Tensor(f"{name}.linear_fc1.weight", 2 * shape.hidden_size * inner)
    yield Tensor(f"{name}.linear_fc2.weight", shape.hidden_size * inner)
    if bias:
        yield Tensor(f"{name}.linear_fc1.bias", 2 * inner)
        yield Tensor(f"{name}.linear_fc2.bias", shape.hidden_size, "whole")


def _experts(shape: Shape) -> Iterator[Tensor]:
    expert = shape.num_experts * shape.hidden_size * shape.moe_intermediate_size
    yield Tensor("mlp.router.weight", shape.num_experts * shape.hidden_size, "whole")
    yield Tensor("mlp.experts.local_experts.0.linear_fc1.weight", 2 * expert, "experts")
    yield Tensor("mlp.experts.local_experts.0.linear_fc2.weight", expert, "experts")
    if shape.n_shared_experts:
        yield from _gated("mlp.shared_experts", shape, shape.n_shared_experts * shape.moe_intermediate_size)


def _end(shape: Shape) -> Iterator[Tensor]:
    if shape.post_norms:
        yield Tensor("mlp_bda.norm.weight", shape.hidden_size, "whole")
