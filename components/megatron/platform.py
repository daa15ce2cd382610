"""The platform: the one seam between CPU and CUDA on the Megatron side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from slime_launch.errors import ComponentError


@dataclass(frozen=True)
class Platform:
    """What differs between devices.

    device: torch device type of weights and batches. backend: of torch.distributed.
    install: runs before megatron is imported. seed: seeds Megatron's model-parallel generators.
    overrides: TransformerConfig fields that the device needs.
    refused: TransformerConfig fields that it cannot serve when they are truthy -> why.
    """

    device: str
    backend: str
    install: Callable[[], None]
    seed: Callable[[int], None]
    overrides: Mapping[str, Any] = field(default_factory=dict)
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
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    model_parallel_cuda_manual_seed(seed)


FLOAT32_ONLY = {name: "weights are trained in float32" for name in ("bf16", "fp16", "fp8", "fp4")}

PLATFORMS = {
    "cpu": Platform(
        device="cpu",
        backend="gloo",
        install=_install_cpu,
        seed=_seed_cpu,
        overrides={"use_cpu_initialization": True, "batch_p2p_comm": False},
        refused=FLOAT32_ONLY
        | {
            "sequence_parallel": "torch's norms have no sequence-parallel form",
            "moe_grouped_gemm": "a CUDA kernel",
            "moe_permute_fusion": "a CUDA kernel",
            "moe_router_fusion": "a CUDA kernel",
            "moe_shared_expert_overlap": "overlaps CUDA streams",
            "moe_expert_capacity_factor": "no token is dropped",
            "gradient_accumulation_fusion": "a CUDA kernel",
            "masked_softmax_fusion": "a CUDA kernel",
            "apply_rope_fusion": "a CUDA kernel",
        },
    ),
    "cuda": Platform(device="cuda", backend="nccl", install=_install_cuda, seed=_seed_cuda, refused=FLOAT32_ONLY),
}


def load_platform(device: str) -> Platform:
    """The platform of a device type.

    Raises ComponentError for a name other than cpu or cuda.
    """
    if device not in PLATFORMS:
        raise ComponentError(f"cluster.device={device}: the trainer knows {sorted(PLATFORMS)}")
    return PLATFORMS[device]
