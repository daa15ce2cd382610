"""The parts that serve on CPU, without a server."""

from __future__ import annotations

import subprocess
import sys

from components.sglang.cpu import KERNELS


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
