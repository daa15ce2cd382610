"""cluster: the machines, and how the run gets onto them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from slime_launch.schema.fields import Count, Natural, Node, Positive, Seconds, about


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """The machines; numbers that are null are read from this one."""

    backend: Annotated[Node, about("What gives the run its Ray cluster, or hands it to a scheduler.")] = field(
        default_factory=dict
    )
    loopback: Annotated[bool, about("Everything runs on this machine and listens on the loopback interface only.")] = (
        True
    )
    device: Annotated[Literal["auto", "cpu", "cuda"], about("Where to run; auto takes CUDA where there is a GPU.")] = (
        "auto"
    )
    num_nodes: Annotated[Count, about("Machines of the run.")] = 1
    gpus_per_node: Annotated[Natural | None, about("GPUs of each node; null: what this machine has.", "GPU")] = None
    gpu_memory_gb: Annotated[Positive, about("Memory of each GPU, for the plan's estimate.", "GB")] = 80.0
    memory_gb: Annotated[Positive | None, about("Main memory of each node; null: this machine's.", "GB")] = None
    base_port: Annotated[Natural, about("First port of the run's block; 0 takes a free block.")] = 0
    nodes_timeout_s: Annotated[Seconds, about("Longest wait for the nodes' GPUs and CPUs to be free.", "s")] = 300.0
    start_timeout_s: Annotated[Seconds, about("Longest wait for one actor to start.", "s")] = 300.0
    object_store_mb: Annotated[Natural, about("Ray's object store.", "MB")] = 256
