"""What the planner reads from the machine, without importing any GPU library.

Devices, cores, memory, free ports.
"""

from __future__ import annotations

import os
import random
import socket
from dataclasses import dataclass
from pathlib import Path

_PORTS = range(20_000, 32_000)  # below Linux's ephemeral range, which starts at 32,768


@dataclass(frozen=True)
class Machine:
    """gpus: CUDA devices that this process may see. cores: CPUs that it may use. memory_gb: main memory."""

    gpus: int
    cores: int
    memory_gb: float


def read_machine() -> Machine:
    """Count GPUs and the rest; CUDA_VISIBLE_DEVICES is honoured, an empty one hides every GPU."""
    found = len([path for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit()])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        found = min(found, len([name for name in visible.split(",") if name.strip() not in ("", "-1")]))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(gpus=found, cores=len(os.sched_getaffinity(0)), memory_gb=memory / 2**30)


def port_is_free(port: int, address: str = "127.0.0.1") -> bool:
    """Whether a server could listen on this port of one of our addresses now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """``count`` consecutive free loopback ports.

    Raises OSError when no such block is found.
    """
    for _ in range(200):
        first = random.SystemRandom().randrange(_PORTS.start, _PORTS.stop - count)
        block = list(range(first, first + count))
        if all(map(port_is_free, block)):
            return block
    raise OSError(f"no block of {count} free ports between {_PORTS.start} and {_PORTS.stop}")
