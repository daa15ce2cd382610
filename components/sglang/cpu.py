"""The environment of an engine on a machine without a GPU. Its operators: ``attention``, ``kernels``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ENV = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "SGLANG_ENABLE_TORCH_INFERENCE_MODE": "1",  # each operator costs less; a twentieth of a decode step of small models
    "SLIME_LAUNCH_SKIP_IMPORTS": "flashinfer,megatron,scipy,sklearn",
}
KERNELS = Path(__file__).resolve().parent / "kernels"


def environment(server_args: Mapping[str, Any]) -> dict[str, str]:
    """What a server of these arguments needs on CPU.

    SGLang gives each rank a NUMA node of its own unless it is told a core for each, which then go round. It talks
    through gloo only if it finds no NCCL, which the torch package brings along.
    """
    ranks = int(server_args.get("tp_size", 1) * server_args.get("pp_size", 1) * server_args.get("dp_size", 1))
    if ranks == 1:
        return dict(_ENV)
    cores = sorted(os.sched_getaffinity(0))
    bound = "|".join(str(cores[rank % len(cores)]) for rank in range(ranks))
    return _ENV | {"SGLANG_CPU_OMP_THREADS_BIND": bound, "SGLANG_NCCL_SO_PATH": "no-nccl-on-cpu"}
