"""Forward, loss and backward over micro-batches through Megatron's schedules. Imports Megatron."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from components.megatron.batches import MicroBatch
from components.megatron.head import Head
from components.megatron.logprobs import token_logprobs
from components.models.base import TakesHead
from components.models.context import summed
from slime_launch.interfaces import Algorithm

LOSS, ENTROPY, GAP, TOKENS, GAP_MAX = "loss", "entropy", "gap", "tokens", "gap_max"
FRESH = "fresh"
"""Counted tokens that were sampled from the newest weights: those over which the gap is a mean."""
Scores = tuple[Tensor, Tensor]
"""Log-probabilities [N, R] with gradient, entropies [N, R]."""


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
        first = not (parallel_state.get_tensor_model_parallel_rank() or parallel_state.get_context_parallel_rank())
        counts = first and parallel_state.is_pipeline_last_stage()
        everywhere: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, (self.sums, self.gap_max) if counts else ({}, 0.0))
        self.sums = {}
        for sums, gap_max in everywhere:
            self.add({name: value for name, value in sums.items()} | {GAP_MAX: gap_max})

    def mean(self, name: str) -> float:
        """A sum over the number of tokens that it is about; 0 when there is none."""
        return self.sums.get(name, 0.0) / max(self.sums.get(FRESH if name == GAP else TOKENS, 0.0), 1.0)


@dataclass(frozen=True)
class Stepper:
    """Runs micro-batches through the wrapped model; chunks: one a virtual pipeline stage.

    head: log-probabilities from hidden states, for models that take it; others give their logits whole.
    communication: keywords of Megatron's schedule.
    """

    chunks: list[Any]
    algorithm: Algorithm
    head: Head
    communication: Mapping[str, Any] = field(default_factory=dict)

    def logprobs(self, batches: Sequence[MicroBatch]) -> Report:
        """Forward only: fill each micro-batch's ``old_NR``."""
        for chunk in self.chunks:
            chunk.eval()
        try:
            return self._run(batches, self._keep_old, forward_only=True)
        finally:
            for chunk in self.chunks:
                chunk.train()

    def gradients(self, batches: Sequence[MicroBatch]) -> Report:
        """Forward and backward; leaves the gradient of the mean loss over the counted tokens of all ranks."""
        return self._run(batches, self._loss, forward_only=False)

    def _run(self, batches: Sequence[MicroBatch], loss: Callable[..., Any], forward_only: bool) -> Report:
        parts = get_forward_backward_func()(
            forward_step_func=partial(self._forward, loss),
            # Every virtual stage goes through the batches by itself.
            data_iterator=[iter(batches) for _ in self.chunks],
            model=self.chunks,
            num_microbatches=len(batches),
            # Shapes travel with the tensors (variable_seq_lengths); these two are the first micro-batch's.
            seq_length=batches[0].inputs["position_ids"].shape[-1],
            micro_batch_size=batches[0].inputs["input_ids"].shape[0],
            forward_only=forward_only,
            **self.communication,
        )
        report = Report()
        for part in parts:
            report.add(part)
        return report

    def _forward(self, loss: Callable[..., Any], batches: Iterator[MicroBatch], model: Any) -> tuple[Tensor, Any]:
        batch = next(batches)
        if not takes_head(model):
            return model(**batch.inputs), lambda logits_BSV: loss(batch, summed(*self._from_logits(batch, logits_BSV)))
        places = {"slots_NR": batch.slots_NR, "targets_NR": batch.targets_NR, "mask_NR": batch.here_NR}
        head = partial(self.head, **places, sequence_parallel=model.config.sequence_parallel)
        return model(**batch.inputs, head=head), lambda scores: loss(batch, summed(*scores))

    def _from_logits(self, batch: MicroBatch, logits_BSV: Tensor) -> Scores:
        logits_NRV = logits_BSV.flatten(0, 1)[batch.slots_NR] / self.head.temperature
        scores = token_logprobs(logits_NRV, batch.targets_NR, self.head.vocab, self.head.banned_tokens)
        return scores[0] * batch.here_NR, scores[1] * batch.here_NR

    def _measure(self, batch: MicroBatch, scores: Scores) -> dict[str, Tensor]:
        """Sums over the counted tokens."""
        logprobs_NR, entropy_NR = scores
        gap_NR = (logprobs_NR.detach() - batch.engine_NR).abs() * batch.fresh_NR
        return {
            ENTROPY: (entropy_NR * batch.mask_NR).sum(),
            GAP: gap_NR.sum(),
            GAP_MAX: gap_NR.max(),
            FRESH: batch.fresh_NR.sum(),
            TOKENS: batch.mask_NR.sum(),
        }

    def _keep_old(self, batch: MicroBatch, scores: Scores) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        logprobs_NR, sums = scores[0], self._measure(batch, scores)
        batch.old_NR = logprobs_NR.detach()
        return logprobs_NR.sum(), batch.here_NR.sum().int(), sums

    def _loss(self, batch: MicroBatch, scores: Scores) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        logprobs_NR, sums = scores[0], self._measure(batch, scores)
        mine_NR = logprobs_NR.detach() if batch.old_NR is None else batch.old_NR
        # What older weights sampled has their probabilities, and nobody but the engine knows those.
        old_NR = torch.where(batch.mask_NR > batch.fresh_NR, batch.engine_NR, mine_NR)
        loss_NR, per_token = self.algorithm.loss(logprobs_NR, old_NR, batch.advantages_N, batch.mask_NR)
        loss = (loss_NR * batch.mask_NR).sum()
        sums |= {name: (value_NR * batch.mask_NR).sum() for name, value_NR in per_token.items()}
        # Megatron adds the tokens of ranks that share rows up, as it does their gradients.
        return loss, batch.here_NR.sum().int(), sums | {LOSS: loss.detach()}


def takes_head(model: Any) -> bool:
    """Whether a wrapped chunk lets a head take the output layer's place."""
    inner = model.module
    return isinstance(inner, TakesHead) and inner.takes_head
