"""Weights from the trainer into one engine: a broadcast group of the trainer (rank 0) and the engine's ranks."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from components.sglang.control import Control, background
from components.sglang.disk import DiskSink
from components.sglang.sockets import host_store
from slime_launch.errors import ComponentError
from slime_launch.interfaces import WeightSink

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup, TCPStore

_LEAVE_S = 10.0
# below this mean size one broadcast of all bytes beats one broadcast a tensor
_FLATTEN_BELOW_BYTES = 1 << 20


class EngineSink:
    """One engine as a target of weight sync (WeightSink).

    url, key: the engine and its admin token. group: what the transfer group's name begins with; the rest is fresh for
    each ``connect``, since an engine keeps the name of a group whose trainer died. host, port: where this process
    listens for the engine to join. backend: gloo or nccl. tp_size: ranks of the engine. timeout_s: limit of each wait.
    """

    def __init__(
        self,
        *,
        url: str,
        key: str,
        group: str,
        port: int,
        backend: str,
        tp_size: int = 1,
        host: str = "127.0.0.1",
        timeout_s: float = 120.0,
    ) -> None:
        self.url = url
        self._control = Control(url, key, timeout_s)
        self._prefix = self._name = group
        self._address = (host, port)
        self._backend = backend
        self._world = 1 + tp_size
        self._group: ProcessGroup | None = None

    def connect(self) -> None:
        """Join a transfer group of a new name together with the engine.

        Raises ComponentError when the port is taken or the engine refuses, DeadlineError when it does not join in time.
        """
        self._name = f"{self._prefix}-{secrets.token_hex(4)}"
        self._control.open()
        host, port = self._address
        store = self._store()
        body = {"master_address": host, "master_port": port, "rank_offset": 1, "world_size": self._world}
        names = {"group_name": self._name, "backend": self._backend}
        reply = self._control.later("/init_weights_update_group", body | names)
        joined = background(lambda: self._join(store))
        self._control.watch(joined.done, reply, "joining the weight group")
        self._group = joined.result()
        self._control.finish(reply, "joining the weight group")

    def begin(self) -> None:
        """Open an update session."""
        self._control.post("/begin_weight_update", {}, "opening a weight update")

    def send(self, bucket: Sequence[tuple[str, Tensor]], version: int | None) -> None:
        """Broadcast (HF name, full tensor) pairs; with ``version`` the engine also forgets every cached prefix.

        Raises ComponentError when the engine refuses or ends, DeadlineError when a wait is late.
        """
        import torch.distributed as dist

        # larger element types first: the engine refuses a tensor that is not aligned in the flat bucket
        ordered = sorted(bucket, key=lambda pair: -pair[1].element_size())
        flat = sum(tensor.nbytes for _, tensor in ordered) < _FLATTEN_BELOW_BYTES * len(ordered)
        body: dict[str, Any] = {
            "names": [name for name, _ in ordered],
            "dtypes": [str(tensor.dtype).removeprefix("torch.") for _, tensor in ordered],
            "shapes": [list(tensor.shape) for _, tensor in ordered],
            "group_name": self._name,
            "flush_cache": version is not None,
            "load_format": "flattened_bucket" if flat else None,
            "weight_version": None if version is None else str(version),
        }
        reply = self._control.later("/update_weights_from_distributed", body)
        tensors = [tensor.detach().contiguous() for _, tensor in ordered]
        for tensor in [_flatten(tensors)] if flat else tensors:
            work = dist.broadcast(tensor, group_src=0, group=self._joined(), async_op=True)
            self._control.watch(work.is_completed, reply, "sending weights")
            work.wait()
        self._control.finish(reply, "sending weights")

    def end(self) -> None:
        """Close the session."""
        self._control.post("/end_weight_update", {}, "closing a weight update")

    def close(self) -> None:
        """Leave the group on both sides; quiet when the engine is gone. Safe to call twice."""
        import torch.distributed as dist

        group, self._group = self._group, None
        if group is not None:
            left = self._control.later("/destroy_weights_update_group", {"group_name": self._name}, _LEAVE_S)
            dist.destroy_process_group(group)
            left.exception()
        self._control.close()

    def _store(self) -> TCPStore:
        """Ours before the engine is asked, which waits long for a store that never comes."""
        host, port = self._address
        try:
            return host_store(host, port, self._world, timedelta(seconds=self._control.timeout_s))
        except OSError as error:
            raise ComponentError(
                f"engine {self.url}: the trainer cannot listen for it on {host} port {port} ({error.strerror}); "
                f"end what listens there, or start again"
            ) from error

    def _join(self, store: TCPStore) -> ProcessGroup:
        """Rank 0's half of SGLang's ``init_custom_process_group``, whose module takes ten seconds to import.

        The same names in the same kind of store, so that both sides meet.
        """
        from torch.distributed import PrefixStore
        from torch.distributed.distributed_c10d import Backend, _new_process_group_helper, _world

        group, _ = _new_process_group_helper(
            self._world,
            0,
            [],
            Backend(self._backend),
            PrefixStore(self._name, store),
            group_name=self._name,
            timeout=timedelta(seconds=self._control.timeout_s),
        )
        _world.pg_group_ranks[group] = {member: member for member in range(self._world)}
        joined: ProcessGroup = group
        return joined

    def _joined(self) -> ProcessGroup:
        if self._group is None:
            raise ComponentError(f"engine {self.url}: not connected for weight sync; call connect first")
        return self._group


def make_sink(url: str, key: str, tp_size: int, sync: dict[str, Any]) -> WeightSink:
    """The sink of one engine; ``sync``: ``via`` (broadcast or disk), and the arguments of that sink.

    Raises ComponentError for another way.
    """
    args = {name: value for name, value in sync.items() if name != "via"}
    if sync["via"] == "disk":
        return DiskSink(url=url, key=key, **args)
    if sync["via"] == "broadcast":
        return EngineSink(url=url, key=key, tp_size=tp_size, **args)
    raise ComponentError(f"engine {url}: weights go by broadcast or disk, not by {sync['via']}")


def _flatten(tensors: Sequence[Tensor]) -> Tensor:
    """All bytes in one row, [sum of bytes] uint8."""
    import torch

    return torch.cat([tensor.flatten().view(torch.uint8) for tensor in tensors])
