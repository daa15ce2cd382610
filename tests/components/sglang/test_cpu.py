"""The parts that serve on CPU, without a server."""

from __future__ import annotations

import subprocess
import sys

import torch

from components.sglang.cpu import KERNELS, batched_decode


def decode_one_by_one(query_BHD, keys, values, tables, rows, lengths):  # type: ignore[no-untyped-def]
    out = torch.empty_like(query_BHD)
    for b, row in enumerate(rows):
        slots = tables[row, : lengths[b]]
        k_HLD = keys[slots].repeat_interleave(2, 1).transpose(0, 1)
        v_HLD = values[slots].repeat_interleave(2, 1).transpose(0, 1)
        weights_HL = (torch.einsum("hd,hld->hl", query_BHD[b], k_HLD) * 0.25).softmax(-1)
        out[b] = torch.einsum("hl,hld->hd", weights_HL, v_HLD)
    return out


def test_batched_decode_equals_attention_of_each_request() -> None:
    torch.manual_seed(0)
    H, K, D, slots = 4, 2, 16, 64
    rows, lengths = torch.tensor([2, 0, 1]), torch.tensor([1, 9, 30])
    tables = torch.randint(1, slots, (3, 40), dtype=torch.int32)
    keys, values = torch.randn(slots, K, D), torch.randn(slots, K, D)
    # what lies behind a request's end must not matter, not even as NaN
    keys[0] = values[0] = torch.nan
    for row, length in zip(rows, lengths, strict=True):
        tables[row, length:] = 0
    query_BHD = torch.randn(3, H, D)
    out_BHD = torch.empty_like(query_BHD)

    def never(*_: object, **__: object) -> torch.Tensor:
        raise AssertionError("the original was called")

    options = {"scaling": 0.25, "enable_gqa": True, "causal": False, "sliding_window_size": None}
    batched_decode(never, None, query_BHD, out_BHD, keys, values, tables, rows, lengths, **options)
    wanted = decode_one_by_one(query_BHD, keys, values, tables, rows, lengths)
    torch.testing.assert_close(out_BHD, wanted, atol=1e-5, rtol=1e-5)


def test_batched_decode_leaves_sliding_windows_to_the_original() -> None:
    called = []
    tensors = (
        [torch.zeros(1, 1, 1)] * 4 + [torch.zeros(1, 1, dtype=torch.int32)] + [torch.zeros(1, dtype=torch.long)] * 2
    )
    batched_decode(lambda *a, **k: called.append((a, k)), None, *tensors, sliding_window_size=4)
    assert called[0][1]["sliding_window_size"] == 4


def test_kernel_stand_in_imports_anything_and_runs_nothing() -> None:
    code = """
import torch, sgl_kernel, sgl_kernel.allreduce as a
from sgl_kernel.flash_attn import flash_attn_varlen_func
from sgl_kernel.scalar_type import scalar_types
scalar_types.uint4b8
assert not hasattr(torch.ops.sgl_kernel, "convert_weight_packed")
assert not hasattr(torch.ops.sgl_kernel, "fused_qk_norm_cpu")
try:
    flash_attn_varlen_func(1)
except NotImplementedError as error:
    print(error)
"""
    env = {"PYTHONPATH": str(KERNELS), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert "sgl_kernel.flash_attn.flash_attn_varlen_func has no CPU version" in done.stdout


def test_plugin_is_inert_elsewhere() -> None:
    code = """
import sys
from components.sglang.plugin import register
register()
assert "sglang" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], env={"PATH": ""}, check=True)
