"""``sgl_kernel`` for machines without CUDA, where the compiled package of that name cannot be imported.

Every kernel name, here and in any submodule, is an object that raises NotImplementedError when it is called: SGLang
imports many kernels by name and calls none of them on the native torch paths. ``torch.ops.sgl_kernel`` gets the few
operators that model files look up while they are imported, a working one for what the sampler calls, and no other, so
that SGLang's own ``hasattr`` tests choose those paths.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

import torch

from .murmur import MurmurOperator

__version__ = "0.0.0+cpu"

_LOOKED_UP_AT_IMPORT = (
    "fused_dual_residual_rmsnorm_cpu",
    "fused_gdn_gating_cpu",
    "fused_moe_router_cpu",
    "fused_qk_gemma_rmsnorm_cpu",
    "fused_qk_gemma_rmsnorm_with_gate_cpu",
    "fused_qkvzba_split_reshape_cat_contiguous_cpu",
    "fused_sigmoid_gating_delta_rule_update_cpu",
    "fused_sigmoid_mul_cpu",
    "rmsnorm_cpu",
)


class MissingKernel:
    """A kernel that exists only as a compiled one."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __getattr__(self, name: str) -> MissingKernel:
        return _kernel_of(self.__name__, name)

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(f"{self.__name__} has no CPU version; choose a backend that does not call it")


def _kernel_of(module: str, name: str) -> MissingKernel:
    if name.startswith("__"):
        raise AttributeError(name)
    return MissingKernel(f"{module}.{name}")


def __getattr__(name: str) -> MissingKernel:
    return _kernel_of(__name__, name)


class _KernelModule(ModuleType):
    def __getattr__(self, name: str) -> MissingKernel:
        return _kernel_of(self.__name__, name)


class _KernelFinder(MetaPathFinder, Loader):
    """Answers ``import sgl_kernel.anything`` with a module of missing kernels."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.startswith(__name__ + ".") else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _KernelModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__path__ = []


sys.meta_path.insert(0, _KernelFinder())
for _name in _LOOKED_UP_AT_IMPORT:
    setattr(torch.ops.sgl_kernel, _name, MissingKernel(f"torch.ops.sgl_kernel.{_name}"))
torch.ops.sgl_kernel.murmur_hash32_cpu = MurmurOperator
