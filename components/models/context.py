"""Context parallelism: several ranks share every row of a batch.

The S places of a row are cut into 2C chunks for C ranks, and rank r holds chunks r and 2C - 1 - r: causal attention is
then as much work on every rank. Megatron-Core's rotary embeddings cut the same way, from positions of the whole row.
Attention gathers the keys and values of all ranks, as Llama 3's training does (arXiv:2407.21783, section 3.3.2): any
mask can be applied, and group-query attention makes them small. Importing this imports no Megatron.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Context:
    """Which rank of how many that share rows; alone it holds them whole."""

    rank: int = 0
    size: int = 1

    @property
    def multiple(self) -> int:
        """What a row's length must be a multiple of."""
        return 2 * self.size if self.size > 1 else 1

    @property
    def chunks(self) -> tuple[int, int]:
        """The numbers of this rank's chunks of a row, in the order in which it holds them."""
        return self.rank, 2 * self.size - 1 - self.rank

    def mine(self, whole: Tensor, dim: int) -> Tensor:
        """This rank's part of a tensor that has the places of a row along ``dim``."""
        if self.size == 1:
            return whole
        import torch

        pieces = whole.chunk(2 * self.size, dim)
        return torch.cat([pieces[number] for number in self.chunks], dim)

    def local(self, places: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """Where this rank holds places of a row of ``length``; -1 for those that others hold."""
        if self.size == 1:
            return places
        width = length // (2 * self.size)
        chunk, offset = places // width, places % width
        first, second = self.chunks
        return np.where(chunk == first, offset, np.where(chunk == second, width + offset, -1))

    def whole(self, mine_S: Tensor) -> Tensor:
        """Collective. All parts [S / C, ...] in the row's order [S, ...]; backward sums the ranks' gradients."""
        import torch
        from megatron.core import parallel_state
        from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region

        group = parallel_state.get_context_parallel_group()
        pieces = gather_from_sequence_parallel_region(mine_S, group=group).chunk(2 * self.size)
        return torch.cat([*pieces[::2], *pieces[::-2]])


def this_context() -> Context:
    """This process's, once Megatron's groups are there."""
    from megatron.core import parallel_state

    return Context(parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size())


def summed(logprobs: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
    """Collective. Sums over the ranks that share rows, each of which has zeros where another has a value.

    The logprobs keep their gradient, which reaches each rank's own; the entropies have none.
    """
    import torch
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region

    if parallel_state.get_context_parallel_world_size() == 1:
        return logprobs, entropy
    group = parallel_state.get_context_parallel_group()
    together = reduce_from_tensor_model_parallel_region(torch.stack([logprobs, entropy]), group=group)
    return together[0], together[1].detach()
