"""Forward pass of a plain Qwen3 on CPU in few operators.

With matrices this small the time of SGLang's forward pass is that of Python between its operators: modules, dispatch by
backend, residual streams for parallel layouts that one process does not have. Here the same arithmetic is one function.
Operators are fused where torch allows, and what every layer needs alike (rotations, the places of keys) is made once.

T tokens of the batch, M hidden size; other letters as in ``attention``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from components.sglang.attention import Parts, Rows

if TYPE_CHECKING:
    from torch import Tensor

FORWARD_TARGET = "sglang.srt.models.qwen3.Qwen3Model.forward"
_KNOWN = "_slime_launch_plain"
Rotations = tuple["Tensor", "Tensor"]


def plain_forward(
    original: Callable[..., Any],
    model: Any,
    input_ids: Tensor,
    positions: Tensor,
    forward_batch: Any,
    input_embeds: Tensor | None = None,
    pp_proxy_tensors: Any = None,
) -> Any:
    """Hidden states [T, M] of a decode step or a prefill; everything else goes the original way."""
    rows = None
    if pp_proxy_tensors is None and positions.dim() == 1 and not model.layers_to_capture and _is_plain(model):
        rows = _rows(model, forward_batch)
    if rows is None:
        return original(model, input_ids, positions, forward_batch, input_embeds, pp_proxy_tensors)
    hidden_TM = model.embed_tokens(input_ids) if input_embeds is None else input_embeds.clone()
    return _layers(model, hidden_TM, positions, forward_batch, rows)


def _layers(model: Any, residual_TM: Tensor, positions: Tensor, forward_batch: Any, rows: Rows | Parts) -> Tensor:
    from sglang.srt.model_executor.forward_context import get_attn_backend
    from torch.nn.functional import silu

    pool, slots_T = get_attn_backend().token_to_kv_pool, forward_batch.out_cache_loc
    rotations = _rotations(model.layers[0].self_attn.rotary_emb, positions)
    for layer in model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        qkv_T = _linear(attention.qkv_proj, _norm(layer.input_layernorm, residual_TM))
        query_THD, keys_TKD, values_TKD = _heads(attention, qkv_T, rotations)
        keys_SKD, values_SKD = pool.get_kv_buffer(attention.attn.layer_id)
        keys_SKD.index_copy_(0, slots_T, keys_TKD)
        values_SKD.index_copy_(0, slots_T, values_TKD)
        seen_THD = rows.attend(query_THD, keys_SKD, values_SKD, attention.scaling)
        residual_TM += _linear(attention.o_proj, seen_THD.flatten(1))
        gate_TI, up_TI = _linear(mlp.gate_up_proj, _norm(layer.post_attention_layernorm, residual_TM)).chunk(2, -1)
        residual_TM += _linear(mlp.down_proj, silu(gate_TI).mul_(up_TI))
    return _norm(model.norm, residual_TM)


def _linear(module: Any, x: Tensor) -> Tensor:
    from torch.nn.functional import linear

    return linear(x, module.weight, module.bias)


def _heads(attention: Any, qkv_T: Tensor, rotations: Rotations) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values; queries and keys normed and turned, together."""
    import torch

    heads, kv_heads, size = attention.num_heads, attention.num_kv_heads, attention.head_dim
    heads_TAD = qkv_T.view(len(qkv_T), heads + 2 * kv_heads, size)
    both_TXD, values_TKD = heads_TAD[:, : heads + kv_heads], heads_TAD[:, heads + kv_heads :]
    norms = attention.q_norm.weight.expand(heads, -1), attention.k_norm.weight.expand(kv_heads, -1)
    both_TXD = (both_TXD * _scale(both_TXD, attention.q_norm.variance_epsilon)).mul_(torch.cat(norms))
    cos_T1D, sin_T1d = rotations
    half = size // 2
    turned_TXD = both_TXD * cos_T1D
    turned_TXD[..., :half].addcmul_(both_TXD[..., half:], sin_T1d, value=-1)
    turned_TXD[..., half:].addcmul_(both_TXD[..., :half], sin_T1d)
    return turned_TXD[:, :heads], turned_TXD[:, heads:], values_TKD


def _rotations(rotary: Any, positions: Tensor) -> Rotations:
    """Cosines of both halves of a head, and sines of one."""
    import torch

    cos_Td, sin_Td = rotary.cos_sin_cache.index_select(0, positions).chunk(2, -1)
    return torch.cat((cos_Td, cos_Td), -1)[:, None], sin_Td[:, None]


def _norm(module: Any, x: Tensor) -> Tensor:
    return (x * _scale(x, module.variance_epsilon)).mul_(module.weight)


def _scale(x: Tensor, epsilon: float) -> Tensor:
    """1 / root mean square of the last dimension."""
    import torch

    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.addcmul(_constant(epsilon), norm, norm, value=1 / x.shape[-1]).rsqrt_()


@cache
def _constant(value: float) -> Tensor:
    import torch

    return torch.tensor(value)


def _rows(model: Any, batch: Any) -> Rows | Parts | None:
    """Where the keys of a plain decode step or prefill lie, None for any other pass."""
    from sglang.srt.model_executor.forward_batch_info import ForwardMode
    from sglang.srt.model_executor.forward_context import get_attn_backend

    if batch.spec_info is not None or batch.encoder_lens is not None or not _keeps_plain_keys(get_attn_backend()):
        return None
    table, rows_B = get_attn_backend().req_to_token_pool.req_to_token, batch.req_pool_indices
    if batch.forward_mode == ForwardMode.DECODE:
        return Rows.of_decode(table, rows_B, batch.seq_lens)
    if batch.forward_mode != ForwardMode.EXTEND:
        return None
    attention = model.layers[0].self_attn
    share = attention.num_heads // attention.num_kv_heads
    return Parts.of_extend(table, rows_B, batch.extend_prefix_lens, batch.extend_seq_lens, share)


def _keeps_plain_keys(backend: Any) -> bool:
    """Whether keys and values lie in float32 rows of their own tokens."""
    import torch
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    if type(backend) is not TorchNativeAttnBackend or type(backend.token_to_kv_pool) is not MHATokenToKVPool:
        return False
    pool = backend.token_to_kv_pool
    return pool.dtype == pool.store_dtype == torch.float32 and not pool.use_hnd and pool.kv_cache_layout == "nhd"


def _is_plain(model: Any) -> bool:
    known = getattr(model, _KNOWN, None)
    if known is None:
        known = _has_only_plain_parts(model)
        setattr(model, _KNOWN, known)
    return bool(known)


def _has_only_plain_parts(model: Any) -> bool:
    """Whether this is a Qwen3 of one rank in float32 without quantization, adapters, hooks or other rotations."""
    import torch
    from sglang.srt.layers.layernorm import RMSNorm
    from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
    from sglang.srt.models.qwen3 import Qwen3DecoderLayer, Qwen3Model
    from sglang.srt.runtime_context import get_parallel

    if type(model) is not Qwen3Model or not get_parallel().tp_size == get_parallel().pp_size == 1:
        return False
    parts = list(model.modules())
    norms = [part for part in parts if isinstance(part, RMSNorm)]
    rotaries = [part for part in parts if isinstance(part, RotaryEmbedding)]
    return (
        all(type(layer) is Qwen3DecoderLayer and _has_plain_linears(layer) for layer in model.layers)
        and all(parameter.dtype == torch.float32 for parameter in model.parameters())
        and all(norm.variance_size_override is None and not norm.cast_x_before_out_mul for norm in norms)
        and len({id(each) for each in rotaries}) == 1
        and all(_is_plain_rotary(each) for each in rotaries)
        and not any(part._forward_hooks or part._forward_pre_hooks for part in parts)
    )


def _is_plain_rotary(rotary: Any) -> bool:
    from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding

    own = type(rotary).forward_native is not RotaryEmbedding.forward_native or hasattr(rotary, "sin_cos_cache")
    return not own and rotary.is_neox_style and rotary.rotary_dim == rotary.head_size


def _has_plain_linears(layer: Any) -> bool:
    from sglang.srt.layers import linear
    from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod
    from sglang.srt.layers.radix_attention import AttentionType

    attention, mlp = layer.self_attn, layer.mlp
    kinds = {
        attention.qkv_proj: linear.QKVParallelLinear,
        attention.o_proj: linear.RowParallelLinear,
        mlp.gate_up_proj: linear.MergedColumnParallelLinear,
        mlp.down_proj: linear.RowParallelLinear,
    }
    windowed = (attention.attn.sliding_window_size or -1) > -1
    return (
        all(type(part) is kind and type(part.quant_method) is UnquantizedLinearMethod for part, kind in kinds.items())
        and not any(part.skip_bias_add for part in kinds)
        and attention.attn.attn_type == AttentionType.DECODER
        and not windowed
        and attention.q_norm.variance_epsilon == attention.k_norm.variance_epsilon
    )
