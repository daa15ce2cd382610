"""Looks at one node from inside: the actor that holds a bundle's GPUs for a moment."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass

from slime_launch.machine import port_is_free


@dataclass(frozen=True)
class Seen:
    """A node as its probe found it: Ray's id, address, GPU ids in order, and what is wrong with it."""

    node: str
    address: str
    gpus: tuple[str, ...]
    fault: str | None


def in_index_order(ids: Sequence[object]) -> tuple[str, ...]:
    """GPU ids as CUDA_VISIBLE_DEVICES takes them: numbers ascending, names (of MIG slices, say) by themselves."""
    names = [str(each) for each in ids]
    return tuple(sorted(names, key=lambda name: (0, int(name), "") if name.isdigit() else (1, 0, name)))


def fault_of(address: str, run_dir: str, ports: Sequence[int]) -> str | None:
    """Why nothing of a run can work on this node, None when it can.

    ports: what servers of the node will listen on.
    """
    ip = ipaddress.ip_address(address)
    if ip.version != 4:
        return f"its address {address} is not IPv4; start Ray with an IPv4 --node-ip-address"
    if ip.is_global:
        return f"its address {address} is public; start Ray with --node-ip-address of a private network"
    if not os.path.isdir(run_dir):
        return f"it does not see the run folder {run_dir}; put it on a file system that all nodes share"
    taken = [port for port in ports if not port_is_free(port, address)]
    if taken:
        return f"ports {', '.join(map(str, taken))} are taken; give another cluster.base_port"
    return None


class Probe:
    """Lives as long as one look."""

    def look(self, run_dir: str, ports: Sequence[int]) -> Seen:
        """What there is; a fault does not raise, so that all nodes can be listed."""
        import ray

        context = ray.get_runtime_context()
        address = ray.util.get_node_ip_address()
        gpus = in_index_order(ray.get_gpu_ids())
        return Seen(context.get_node_id(), address, gpus, fault_of(address, run_dir, ports))
