"""Torch's rendezvous store, which listens on every interface of the machine, kept to the one it is reached by."""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store, TCPStore

STORE_TARGET = "torch.distributed.rendezvous._create_c10d_store"


def host_store(host: str, port: int, world: int, timeout: timedelta) -> TCPStore:
    """Rank 0's store, listening on ``host`` only, at once. Raises OSError when the port is taken."""
    from torch.distributed import TCPStore

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
        # the store owns the descriptor from here on; whoever uses it waits for the others
        return TCPStore(
            host, port, world, True, timeout, False, True, master_listen_fd=listener.detach(), use_libuv=True
        )


def create_bound_store(
    original: Callable[..., Store],
    hostname: str,
    port: int,
    rank: int,
    world_size: int,
    timeout: timedelta,
    *options: object,
) -> Store:
    """Hook of torch's own store creation: rank 0 hosts a bound store, the others join as they always did."""
    if rank != 0:
        return original(hostname, port, rank, world_size, timeout, *options)
    return host_store(hostname, port, world_size, timeout)
