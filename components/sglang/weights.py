"""Weights from the trainer into one engine: a broadcast group of the trainer (rank 0) and the engine's ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import timedelta
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from components.sglang.sockets import host_store
from slime_launch.errors import ComponentError, DeadlineError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

_T = TypeVar("_T")
_POLL_S = 0.0005
_LEAVE_S = 10.0
# below this mean size one broadcast of all bytes beats one broadcast a tensor
_FLATTEN_BELOW_BYTES = 1 << 20


class EngineSink:
    """One engine as a target of weight sync (WeightSink).

    url, key: the engine and its admin token. group: the transfer group's name, fresh for each run, since an engine
    keeps the name of a group whose trainer died. host, port: where this process listens for the engine to join.
    backend: gloo or nccl. tp_size: ranks of the engine. timeout_s: limit of each single wait.
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
        self._key = key
        self._name = group
        self._address = (host, port)
        self._backend = backend
        self._world = 1 + tp_size
        self._timeout_s = timeout_s
        self._client: httpx.Client | None = None
        self._group: ProcessGroup | None = None

    def connect(self) -> None:
        """Join the transfer group together with the engine.

        Raises ComponentError when the engine refuses, DeadlineError when it does not join in time.
        """
        headers = {"Authorization": f"Bearer {self._key}"}
        self._client = httpx.Client(base_url=self.url, headers=headers, timeout=self._timeout_s, trust_env=False)
        host, port = self._address
        body = {"master_address": host, "master_port": port, "rank_offset": 1, "world_size": self._world}
        reply = self._later("/init_weights_update_group", body | {"group_name": self._name, "backend": self._backend})
        joined = _background(self._join)
        self._watch(joined.done, reply, "joining the weight group")
        self._group = joined.result()
        self._finish(reply, "joining the weight group")

    def begin(self) -> None:
        """Open an update session."""
        self._finish(self._later("/begin_weight_update", {}), "opening a weight update")

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
        reply = self._later("/update_weights_from_distributed", body)
        tensors = [tensor.detach().contiguous() for _, tensor in ordered]
        for tensor in [_flatten(tensors)] if flat else tensors:
            work = dist.broadcast(tensor, group_src=0, group=self._joined(), async_op=True)
            self._watch(work.is_completed, reply, "sending weights")
            work.wait()
        self._finish(reply, "sending weights")

    def end(self) -> None:
        """Close the session."""
        self._finish(self._later("/end_weight_update", {}), "closing a weight update")

    def close(self) -> None:
        """Leave the group on both sides; quiet when the engine is gone. Safe to call twice."""
        import torch.distributed as dist

        client, group = self._client, self._group
        self._client = self._group = None
        if client is not None and group is not None:
            body = {"group_name": self._name}
            left = _background(lambda: client.post("/destroy_weights_update_group", json=body, timeout=_LEAVE_S))
            dist.destroy_process_group(group)
            left.exception()
        if client is not None:
            client.close()

    def _join(self) -> ProcessGroup:
        """Rank 0's half of SGLang's ``init_custom_process_group``, whose module takes ten seconds to import.

        The same names in the same kind of store, so that both sides meet.
        """
        from torch.distributed import PrefixStore
        from torch.distributed.distributed_c10d import Backend, _new_process_group_helper, _world

        host, port = self._address
        limit = timedelta(seconds=self._timeout_s)
        store = PrefixStore(self._name, host_store(host, port, self._world, limit))
        group, _ = _new_process_group_helper(
            self._world, 0, [], Backend(self._backend), store, group_name=self._name, timeout=limit
        )
        _world.pg_group_ranks[group] = {member: member for member in range(self._world)}
        joined: ProcessGroup = group
        return joined

    def _joined(self) -> ProcessGroup:
        if self._group is None:
            raise ComponentError(f"engine {self.url}: not connected for weight sync; call connect first")
        return self._group

    def _later(self, path: str, body: dict[str, Any]) -> Future[httpx.Response]:
        client = self._client
        if client is None:
            raise ComponentError(f"engine {self.url}: not connected for weight sync; call connect first")
        return _background(lambda: client.post(path, json=body))

    def _watch(self, done: Callable[[], bool], reply: Future[httpx.Response], doing: str) -> None:
        """Wait for our half of a transfer, unless the engine answers first with a refusal."""
        deadline = time.monotonic() + self._timeout_s
        while not done():
            if reply.done():
                self._finish(reply, doing)
            if time.monotonic() > deadline:
                raise DeadlineError(f"engine {self.url}: {doing} took longer than {self._timeout_s:.0f} s; see its log")
            time.sleep(_POLL_S)

    def _finish(self, reply: Future[httpx.Response], doing: str) -> None:
        try:
            answer = reply.result(self._timeout_s)
        except (httpx.TimeoutException, TimeoutError) as error:
            raise DeadlineError(
                f"engine {self.url}: {doing} took longer than {self._timeout_s:.0f} s; see its log"
            ) from error
        except httpx.HTTPError as error:
            raise ComponentError(f"engine {self.url}: {doing} failed ({error!r}); see its log") from error
        if answer.status_code != 200:
            raise ComponentError(f"engine {self.url}: {doing} was refused ({answer.status_code} {answer.text})")


def _background(work: Callable[[], _T]) -> Future[_T]:
    """Run in a daemon thread: a wait for an engine that never joins must not hold up the end of the process."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def _flatten(tensors: Sequence[Tensor]) -> Tensor:
    """All bytes in one row, [sum of bytes] uint8."""
    import torch

    return torch.cat([tensor.flatten().view(torch.uint8) for tensor in tensors])
