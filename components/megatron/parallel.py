"""Process groups of the training world."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from math import ceil
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from components.megatron.platform import Platform
from slime_launch.errors import ComponentError, DeadlineError

if TYPE_CHECKING:
    from torch.distributed import TCPStore


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How a model is cut: trainer.parallel.

    tp: tensor parallel. pp: pipeline stages. vpp: virtual stages of each. cp: context parallel. ep: ranks, within
    tp x dp, that share the experts. sp: sequence parallel: what tp does not split is split over the sequence.
    """

    tp: int = 1
    pp: int = 1
    vpp: int = 1
    cp: int = 1
    ep: int = 1
    sp: bool = False

    @property
    def virtual(self) -> int | None:
        """Virtual stages as Megatron takes them: None for one."""
        return self.vpp if self.vpp > 1 else None


def join_world(platform: Platform, rendezvous: str, rank: int, size: int, sizes: Sizes, timeout_s: float) -> None:
    """Initialise torch.distributed and Megatron's parallel state.

    Raises ComponentError for sizes that do not divide, DeadlineError when the other ranks do not come in time.
    """
    import torch.distributed as dist
    from megatron.core import parallel_state

    if size % (sizes.tp * sizes.pp * sizes.cp):
        raise ComponentError(
            f"trainer: world_size={size} is no multiple of tp*pp*cp={sizes.tp}*{sizes.pp}*{sizes.cp}; mend "
            "trainer.parallel"
        )
    if dist.is_initialized():
        raise ComponentError(
            "trainer: this process has joined a training world already; give each rank its own process"
        )
    timeout = timedelta(seconds=timeout_s)
    try:
        store = _store(rendezvous, rank, size, timeout)
        dist.init_process_group(platform.backend, store=store, rank=rank, world_size=size, timeout=timeout)
    except dist.DistError as error:
        first = str(error).splitlines()[0]
        raise DeadlineError(
            f"trainer rank {rank}: waited {timeout_s:g} s for {size} ranks at {rendezvous}: {first}"
        ) from error
    parallel_state.initialize_model_parallel(
        sizes.tp, sizes.pp, sizes.virtual,
        context_parallel_size=sizes.cp, expert_model_parallel_size=sizes.ep,
        create_gloo_process_groups=False, distributed_timeout_minutes=ceil(timeout_s / 60),
    )  # fmt: skip


def _store(rendezvous: str, rank: int, size: int, timeout: timedelta) -> TCPStore:
    """A store whose server listens on the rendezvous host only; torch's own would listen on every interface."""
    from torch.distributed import TCPStore

    parts = urlsplit(rendezvous)
    if parts.scheme != "tcp" or not parts.hostname or not parts.port:
        raise ComponentError(f"trainer: rendezvous={rendezvous} must read tcp://host:port")
    if parts.hostname in ("127.0.0.1", "localhost"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    extra: dict[str, Any] = {}
    if rank == 0:
        try:
            server = socket.create_server((parts.hostname, parts.port), backlog=size + 8)
        except OSError as error:
            raise ComponentError(f"trainer: cannot listen at {rendezvous}: {error}; choose a free port") from error
        extra = {"master_listen_fd": server.detach()}
    return TCPStore(parts.hostname, parts.port, size, rank == 0, timeout, **extra)


def leave_world() -> None:
    """Destroy the process groups, if there are any."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
