"""Forward, loss and backward over micro-batches through Megatron's schedules. Imports Megatron."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from components.megatron.batches import MicroBatch
from components.megatron.logprobs import token_logprobs
from slime_launch.interfaces import Algorithm

LOSS, ENTROPY, GAP, TOKENS, GAP_MAX = "loss", "entropy", "gap", "tokens", "gap_max"


@dataclass
class Report:
    """What passes over micro-batches measured: sums over counted tokens, and the largest gap.

    After ``reduce`` the same on every rank.
    """

    sums: dict[str, float] = field(default_factory=dict)
    gap_max: float = 0.0

    def add(self, part: dict[str, Tensor]) -> None:
        """Take one micro-batch in."""
        for name, value in part.items():
            if name == GAP_MAX:
                self.gap_max = max(self.gap_max, float(value))
            else:
                self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def reduce(self) -> None:
        """Collective. Sum over the ranks that saw logits, each sample counted once."""
        if dist.get_world_size() == 1:
            return
        counts = parallel_state.is_pipeline_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0
        everywhere: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, (self.sums, self.gap_max) if counts else ({}, 0.0))
        self.sums = {}
        for sums, gap_max in everywhere:
            self.add({name: value for name, value in sums.items()} | {GAP_MAX: gap_max})

    def mean(self, name: str) -> float:
        """A sum over the number of tokens that count; 0 when none does."""
        return self.sums.get(name, 0.0) / max(self.sums.get(TOKENS, 0.0), 1.0)


@dataclass(frozen=True)
class Stepper:
    """Runs micro-batches through the wrapped model.

    vocab: ids below this are real. temperature: logits are divided by it, as the engine's are.
    """

    model: Any
    algorithm: Algorithm
    vocab: int
    temperature: float

    def logprobs(self, batches: Sequence[MicroBatch]) -> Report:
        """Forward only: fill each micro-batch's ``old_BR``."""
        self.model.eval()
        try:
            return self._run(batches, self._keep_old, forward_only=True)
        finally:
            self.model.train()

    def gradients(self, batches: Sequence[MicroBatch]) -> Report:
        """Forward and backward; afterwards the gradient is that of the mean loss over all counted tokens of all ranks."""
        return self._run(batches, self._loss, forward_only=False)

    def _run(self, batches: Sequence[MicroBatch], loss: Callable[..., Any], forward_only: bool) -> Report:
        parts = get_forward_backward_func()(
            forward_step_func=partial(self._forward, loss),
            data_iterator=iter(batches),
            model=[self.model],
            num_microbatches=len(batches),
            # Shapes travel with the tensors (variable_seq_lengths); these two are the first micro-batch's.
            seq_length=batches[0].inputs["input_ids"].shape[1],
            micro_batch_size=batches[0].inputs["input_ids"].shape[0],
            forward_only=forward_only,
        )
        report = Report()
        for part in parts:
            report.add(part)
        return report

    def _forward(self, loss: Callable[..., Any], batches: Iterator[MicroBatch], model: Any) -> tuple[Tensor, Any]:
        batch = next(batches)
        return model(**batch.inputs), partial(loss, batch)

    def _measure(self, batch: MicroBatch, logits_BSV: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(Logprobs [B, R] with gradient, sums over the counted tokens)."""
        rows = torch.arange(len(batch.rows_BR), device=batch.rows_BR.device).unsqueeze(1)
        logits_BRV = logits_BSV[rows, batch.rows_BR] / self.temperature
        logprobs_BR, entropy_BR = token_logprobs(logits_BRV, batch.targets_BR, self.vocab)
        gap_BR = (logprobs_BR.detach() - batch.engine_BR).abs() * batch.mask_BR
        return logprobs_BR, {
            ENTROPY: (entropy_BR * batch.mask_BR).sum(),
            GAP: gap_BR.sum(),
            GAP_MAX: gap_BR.max(),
            TOKENS: batch.mask_BR.sum(),
        }

    def _keep_old(self, batch: MicroBatch, logits_BSV: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        logprobs_BR, sums = self._measure(batch, logits_BSV)
        batch.old_BR = logprobs_BR.detach()
        return logprobs_BR.sum(), sums[TOKENS].int(), sums

    def _loss(self, batch: MicroBatch, logits_BSV: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        logprobs_BR, sums = self._measure(batch, logits_BSV)
        old_BR = logprobs_BR.detach() if batch.old_BR is None else batch.old_BR
        loss_BR, per_token = self.algorithm.loss(logprobs_BR, old_BR, batch.advantages_B, batch.mask_BR)
        loss = (loss_BR * batch.mask_BR).sum()
        sums |= {name: (value_BR * batch.mask_BR).sum() for name, value_BR in per_token.items()}
        return loss, sums[TOKENS].int(), sums | {LOSS: loss.detach()}
