"""An SGLang server's memory, as SGLang 0.5.23 allocates it."""

from __future__ import annotations

from itertools import chain

from slime_launch.sizes.architectures import Shape
from slime_launch.sizes.memory import Layout, Memory, local_size, stage_layers, stage_tensors
from slime_launch.sizes.parameters import Parameters

DTYPES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2, "fp8_e4m3": 1, "fp8_e5m2": 1}
"""Bytes of a number by the names that SGLang's dtype and kv_cache_dtype take; "auto" is config.json's own dtype."""
INDEX = 4
"""Bytes of a slot number in the table of requests."""
FEWEST_REQUESTS, MOST_REQUESTS = 2048, 4096


def kv_bytes_per_token(shape: Shape, layout: Layout, kv_bytes: int) -> int:
    """KV cache of one token on one GPU: layers of a stage x key-value heads x head size x 2 x bytes.

    Tensor-parallel ranks share the heads and keep one each at least.
    """
    layers = max(len(stage) for stage in stage_layers(shape.num_hidden_layers, layout))
    return layers * max(shape.kv_heads // layout.tp, 1) * shape.head * 2 * kv_bytes


def engine_weights(parameters: Parameters, layout: Layout, weight_bytes: int, encoder_only: bool = False) -> int:
    """Weights of the GPU that holds most.

    A language-only worker holds the tower too: SGLang's GLM-4V and Qwen2.5-VL build it in any case, so there is no
    switch for it here. An encoder-only server holds the tower alone where its model class knows how
    (``lean_encoder``); SGLang's GLM-4V builds the whole model even there.
    """
    heads = parameters.shape.kv_heads
    if encoder_only and parameters.lean_encoder:
        return weight_bytes * sum(local_size(tensor, layout, heads) for tensor in parameters.encoder)
    stages = (
        chain.from_iterable(tensors for _, tensors in stage_tensors(parameters, stage, layout))
        for stage in range(layout.pp)
    )
    return weight_bytes * max(sum(local_size(tensor, layout, heads) for tensor in stage) for stage in stages)


def engine_bytes(
    parameters: Parameters,
    layout: Layout,
    *,
    weight_bytes: int,
    kv_bytes: int | None = None,
    max_total_tokens: int | None = None,
    device_bytes: int | None = None,
    mem_fraction_static: float | None = None,
    context_length: int | None = None,
    max_running_requests: int | None = None,
    encoder_only: bool = False,
    fixed: int = 0,
) -> Memory:
    """Bytes of one server's GPU, or of its processes on CPU.

    The KV pool holds ``max_total_tokens``, and never more than ``mem_fraction_static`` of ``device_bytes`` leaves
    beside the weights; with neither known it is empty. The table of requests beside it has a slot number for each
    token of each request that may run. An encoder-only server has neither. The layout's dp and ep change nothing:
    SGLang's expert ranks are its tensor ranks. Vocabulary padding (64 rows), graphs and workspaces are not counted.

    weight_bytes, kv_bytes: of a number; the cache's are the weights' by default. fixed: what the processes take
    besides, in bytes.
    """
    layout = Layout(tp=layout.tp, pp=layout.pp)
    weights = engine_weights(parameters, layout, weight_bytes, encoder_only)
    if encoder_only:
        return Memory(weights=weights, fixed=fixed)
    per_token = kv_bytes_per_token(parameters.shape, layout, kv_bytes or weight_bytes)
    tokens = pool_tokens(per_token, weights, max_total_tokens, device_bytes, mem_fraction_static)
    context = context_length or parameters.shape.max_position_embeddings
    requests = _requests(tokens, context, max_running_requests)
    return Memory(weights=weights, kv_cache=tokens * per_token + requests * context * INDEX, fixed=fixed)


def pool_tokens(
    per_token: int,
    weights: int,
    max_total_tokens: int | None,
    device_bytes: int | None,
    mem_fraction_static: float | None,
) -> int:
    """Tokens that the KV pool holds: what the device leaves, at most what the config allows.

    Zero means that the weights leave no room.
    """
    limits = [] if max_total_tokens is None else [max_total_tokens]
    if device_bytes is not None and mem_fraction_static is not None:
        limits.append(max(int(device_bytes * mem_fraction_static) - weights, 0) // max(per_token, 1))
    return min(limits, default=0)


def _requests(tokens: int, context: int, max_running_requests: int | None) -> int:
    if max_running_requests is not None:
        return min(max_running_requests, tokens // 2)
    estimated = max(min(tokens * 512 // context, MOST_REQUESTS), FEWEST_REQUESTS)
    return min(estimated, tokens // 2)
