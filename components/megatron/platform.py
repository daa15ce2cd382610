"""The platform: the one seam between CPU and CUDA on the Megatron side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from slime_launch.errors import ComponentError


@dataclass(frozen=True)
class Platform:
    """What differs between devices.

    device: torch device type of weights and batches. backend: of torch.distributed.
    install: runs before megatron is imported. seed: seeds Megatron's model-parallel generators.
    overrides: TransformerConfig fields that the device needs.
    engine: whether layers are built of Transformer Engine's modules.
    refused: TransformerConfig fields that it cannot serve when they are truthy -> why.
    """

    device: str
    backend: str
    install: Callable[[], None]
    seed: Callable[[int], None]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    engine: Callable[[], bool] = lambda: False
    refused: Mapping[str, str] = field(default_factory=dict)


def _install_cpu() -> None:
    from components.megatron import cpu

    cpu.install()


def _seed_cpu(seed: int) -> None:
    import torch

    torch.manual_seed(seed)


def _install_cuda() -> None:
    import torch

    torch.cuda.set_device(0)


def _seed_cuda(seed: int) -> None:
    import torch
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed)


def _has_engine() -> bool:
    return find_spec("transformer_engine") is not None


UNSCALED = {name: "the trainer scales no loss and quantises no weight" for name in ("fp16", "fp8", "fp4")}
NO_KERNEL = "a CUDA kernel"

PLATFORMS = {
    "cpu": Platform(
        device="cpu",
        backend="gloo",
        install=_install_cpu,
        seed=_seed_cpu,
        overrides={"use_cpu_initialization": True, "batch_p2p_comm": False},
        refused=UNSCALED
        | {
            "bf16": "torch multiplies bfloat16 slowly and inexactly there; weights train in float32",
            "moe_grouped_gemm": NO_KERNEL,
            "moe_permute_fusion": NO_KERNEL,
            "moe_router_fusion": NO_KERNEL,
            "moe_shared_expert_overlap": "overlaps CUDA streams",
            "moe_expert_capacity_factor": "no token is dropped",
            "gradient_accumulation_fusion": NO_KERNEL,
            "masked_softmax_fusion": NO_KERNEL,
            "apply_rope_fusion": NO_KERNEL,
        },
    ),
    "cuda": Platform(
        device="cuda",
        backend="nccl",
        install=_install_cuda,
        seed=_seed_cuda,
        engine=_has_engine,
        refused=UNSCALED | {"masked_softmax_fusion": "the kernel ignores the masks of samples that share a prompt"},
    ),
}


def load_platform(device: str) -> Platform:
    """The platform of a device type.

    Raises ComponentError for a name other than cpu or cuda.
    """
    if device not in PLATFORMS:
        raise ComponentError(f"cluster.device={device}: the trainer knows {sorted(PLATFORMS)}")
    return PLATFORMS[device]
