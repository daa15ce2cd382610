"""The CPU bridge: what Megatron-Core 0.16.1 takes for granted about CUDA, given to a process that has none.

Released Megatron stays unpatched on disk. ``install`` must run before the first import of ``megatron``. Not bridged:
the distributed optimizer, 16-bit training. Mixture of experts has its part in ``cpu_moe``.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from slime_launch.errors import ComponentError

FACTORIES = ("empty", "ones", "tensor", "zeros")


def install() -> None:
    """Bridge this process; safe to call twice.

    Raises ComponentError when Megatron is loaded already: parts of it would have kept the CUDA calls.
    """
    import torch

    if getattr(torch.cuda.current_device, "bridged", False):
        return
    if "megatron.core" in sys.modules:
        raise ComponentError("the CPU bridge must be installed before megatron is imported; import it later")
    _bridge_torch(torch)
    with _plain_import(torch):
        from megatron.core import jit
        from megatron.core.models.gpt import gpt_layer_specs  # noqa: F401
    jit.disable_jit_fuser()
    _bridge_megatron()


def _bridge_torch(torch: Any) -> None:
    from torch.utils._device import _device_constructors

    cpu = torch.device("cpu")

    def current_device() -> Any:
        return cpu

    current_device.bridged = True  # type: ignore[attr-defined]
    torch.cuda.current_device = current_device
    # One function a name: TorchDynamo, which transformers imports, refuses an object known by two.
    torch.cuda.synchronize = lambda *args, **kwargs: None
    torch.cuda.set_device = lambda *args, **kwargs: None
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self
    # Filled with torch's own functions first, so that `with torch.device(...)` still reaches through the wrappers.
    _device_constructors()
    for name in FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name), cpu))


def _on_cpu(factory: Callable[..., Any], cpu: Any) -> Callable[..., Any]:
    @functools.wraps(factory)
    def on_cpu(*args: Any, **kwargs: Any) -> Any:
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = cpu
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return factory(*args, **kwargs)

    return on_cpu


@contextlib.contextmanager
def _plain_import(torch: Any) -> Iterator[None]:
    """Import Megatron without what only CUDA can use.

    flash_mla's loader raises OSError where Megatron expects ImportError; importing flashinfer takes 3 s; compiling the
    small fused functions takes seconds at the first step and gains nothing there.
    """
    compiler = torch.compile
    torch.compile = lambda function, **options: function
    hidden = [name for name in ("flash_mla", "flashinfer") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        torch.compile = compiler
        for name in hidden:
            del sys.modules[name]


def _bridge_megatron() -> None:
    from megatron.core.optimizer import optimizer
    from megatron.core.tensor_parallel import random

    from components.megatron import cpu_moe

    random.CudaRNGStatesTracker.fork = _no_fork
    # Recomputed activations keep and put back the CUDA generator's state, beside torch's own.
    random._get_cuda_rng_state = lambda *args, **kwargs: None
    random._set_cuda_rng_state = lambda *args, **kwargs: None
    optimizer.clip_grad_by_total_norm_fp32 = clip_grads
    cpu_moe.install()


@contextlib.contextmanager
def _no_fork(self: object, name: str = "") -> Iterator[None]:
    # Forked CUDA generators serve dropout, which is zero here.
    yield


def clip_grads(parameters: Any, max_norm: float, total_norm: float, use_decoupled_grad: bool = False) -> None:
    """Scale the gradients in place so that their norm is at most ``max_norm``; Megatron's own asserts CUDA tensors."""
    import torch

    listed: Sequence[Any] = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
    grads = [parameter.grad for parameter in listed if parameter.grad is not None]
    scale = max_norm / (total_norm + 1.0e-6)
    if grads and scale < 1.0:
        torch._foreach_mul_(grads, scale)
