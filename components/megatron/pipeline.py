"""How interleaved pipeline stages talk. Imports Megatron."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator, _p2p_ops
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

UNKNOWN = [0, 0, 0]


class OrderedCommunicator(P2PCommunicator):  # type: ignore[misc]
    """Sends shapes in the order in which Megatron sends the tensors themselves.

    Two interleaved stages are each other's next and previous. Megatron-Core 0.16.1 then lets a shape that goes on meet
    the receiver of one that comes back, which only equal micro-batches survive.
    """

    def _communicate_shapes(
        self, tensor_send_next: Tensor | None, tensor_send_prev: Tensor | None, recv_prev: bool, recv_next: bool
    ) -> tuple[list[int], list[int]]:
        from_prev, from_next = _room(recv_prev), _room(recv_next)
        requests = _p2p_ops(
            tensor_send_prev=_shape(tensor_send_prev),
            tensor_recv_prev=from_prev,
            tensor_send_next=_shape(tensor_send_next),
            tensor_recv_next=from_next,
            group=self.pp_group,
            prev_pipeline_rank=self.prev_rank,
            next_pipeline_rank=self.next_rank,
        )
        for request in requests.values():
            request.wait()
        return tuple(UNKNOWN if shape is None else shape.tolist() for shape in (from_prev, from_next))


def communication(config: Any) -> Mapping[str, Any]:
    """Keywords of Megatron's schedule for a model of several virtual stages; none for others."""
    if config.virtual_pipeline_model_parallel_size is None:
        return {}
    group = parallel_state.get_pipeline_model_parallel_group()
    return {
        "p2p_communicator": OrderedCommunicator(group, config),
        "pg_collection": ProcessGroupCollection.use_mpu_process_groups(),
    }


def _shape(tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    return torch.tensor(tensor.size(), device=torch.cuda.current_device(), dtype=torch.int64)


def _room(wanted: bool) -> Tensor | None:
    return torch.empty(3, device=torch.cuda.current_device(), dtype=torch.int64) if wanted else None
