"""How interleaved pipeline stages talk. Imports Megatron."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

DIMENSIONS = 3


class OrderedCommunicator(P2PCommunicator):  # type: ignore[misc]
    """Each message is a shape and its tensor, one behind the other, on a channel of its direction.

    Of two interleaved stages each is the other's next and previous. Megatron-Core 0.16.1 sends the shapes of all
    messages of a call before their tensors; where the other side takes them in two calls, a shape meets a tensor's
    receiver. Messages to later ranks travel in the pipeline's group and those to earlier ones in the world's, so that
    no message waits for one that comes the other way.
    """

    def _communicate(
        self,
        *,
        tensor_send_next: Tensor | None,
        tensor_send_prev: Tensor | None,
        recv_prev: bool,
        recv_next: bool,
        tensor_shape: Any,
        wait_on_reqs: bool = True,
    ) -> tuple[Tensor | None, Tensor | None, None]:
        """(What the previous stage sent, what the next one did, None: nothing is left to wait for)."""
        del tensor_shape, wait_on_reqs
        sent = [*self._send(tensor_send_next, self.next_rank), *self._send(tensor_send_prev, self.prev_rank)]
        # The previous stage's "next" goes off before its "previous": the same order where both are one rank.
        from_prev = self._receive(self.prev_rank) if recv_prev else None
        if from_prev and self.prev_rank == self.next_rank:
            from_prev = _known(from_prev())
        from_next = self._receive(self.next_rank) if recv_next else None
        received = (None if get is None else get() for get in (from_prev, from_next))
        tensors = tuple(received)
        for request, _ in sent:
            request.wait()
        return tensors[0], tensors[1], None

    def _send(self, tensor: Tensor | None, rank: int) -> list[tuple[Any, Tensor]]:
        """Requests under way, each with what it sends."""
        if tensor is None:
            return []
        shape = torch.tensor(tensor.size(), device=torch.cuda.current_device(), dtype=torch.int64)
        parts = (shape, tensor.detach().contiguous())
        return [(dist.isend(part, rank, group=self._channel(dist.get_rank(), rank)), part) for part in parts]

    def _receive(self, rank: int) -> Callable[[], Tensor]:
        """A message that is awaited; the call gives it."""
        channel, device = self._channel(rank, dist.get_rank()), torch.cuda.current_device()
        shape = torch.empty(DIMENSIONS, device=device, dtype=torch.int64)
        request = dist.irecv(shape, rank, group=channel)

        def tensor() -> Tensor:
            request.wait()
            found = torch.empty(shape.tolist(), device=device, dtype=self.config.pipeline_dtype, requires_grad=True)
            dist.irecv(found, rank, group=channel).wait()
            return found

        return tensor

    def _channel(self, sender: int, receiver: int) -> Any:
        return self.pp_group if sender < receiver else dist.group.WORLD


def communication(config: Any) -> Mapping[str, Any]:
    """Keywords of Megatron's schedule for a model of several virtual stages; none for others."""
    if config.virtual_pipeline_model_parallel_size is None:
        return {}
    group = parallel_state.get_pipeline_model_parallel_group()
    return {
        "p2p_communicator": OrderedCommunicator(group, config),
        "pg_collection": ProcessGroupCollection.use_mpu_process_groups(),
    }


def _known(tensor: Tensor) -> Callable[[], Tensor]:
    return lambda: tensor
