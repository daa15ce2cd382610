"""One rollout's samples -> optimizer steps. Imports Megatron."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

from megatron.core import parallel_state

from components.megatron.advantages import sample_advantages
from components.megatron.batches import MicroBatch, minibatches, newest_version
from components.megatron.step import FRESH, GAP, LOSS, TOKENS, Report
from slime_launch.errors import ComponentError, LogprobGapError
from slime_launch.types import Metrics, Sample

if TYPE_CHECKING:
    from components.megatron.parts import Parts


def train(parts: Parts, step: int, samples: Sequence[Sample], num_minibatches: int, max_logprob_gap: float) -> Metrics:
    """Collective. An optimizer step a minibatch; see ``components.megatron.trainer.MegatronTrainer.train``."""
    began = time.perf_counter()
    batches = _cut(parts, step, samples, num_minibatches)
    skipped = num_minibatches - len(batches)
    first = None
    if num_minibatches > 1:
        first = parts.stepper.logprobs(list(chain.from_iterable(batches)))
        first.reduce()
        _check(step, first, max_logprob_gap)
    reports, norms, rate = [], [], 0.0
    for some in batches:
        parts.optimizer.zero_grad()
        report = parts.stepper.gradients(some)
        report.reduce()
        if first is None:
            _check(step, report, max_logprob_gap)
        if not math.isfinite(report.mean(LOSS)):
            raise ComponentError(f"step {step}: the loss is {report.mean(LOSS)}; this update was not made")
        norm, rate = parts.optimizer.update()
        reports.append(report)
        norms.append(norm)
    gap = first or reports[0]
    return _means(reports) | {
        "train/grad_norm": sum(norms) / len(norms),
        "train/lr-pg_0": rate,
        "train/skipped_steps": float(skipped),
        "train/train_rollout_logprob_abs_diff": gap.mean(GAP),
        "train/train_rollout_logprob_abs_diff/max": gap.gap_max,
        "perf/train_time": time.perf_counter() - began,
    }


def _cut(parts: Parts, step: int, samples: Sequence[Sample], num_minibatches: int) -> list[list[MicroBatch]]:
    """This data-parallel rank's micro-batches of each optimizer step.

    A minibatch in which no token counts has no step: Adam's moments and the weight decay would move the weights without
    a gradient. Every rank has all samples, so all leave out the same. Raises ComponentError when none is left.
    """
    advantages_N = sample_advantages(parts.algorithm, samples)
    newest = max(newest_version(samples), step - 1)  # a batch of kept rollouts may hold older tokens alone
    part, count = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    batches = []
    for some in minibatches(len(samples), num_minibatches):
        mine = [samples[i] for i in some]
        micro = parts.batcher.cut(mine, advantages_N[list(some)], part, count, newest)
        if any(any(sample.loss_mask) for sample in mine):
            batches.append(micro)
    if not batches:
        raise ComponentError(f"step {step}: no token of the batch counts (loss_mask is zero everywhere)")
    return batches


def _check(step: int, report: Report, max_logprob_gap: float) -> None:
    """Raises unless trainer and engine agree on the tokens that count; to be called before the first update."""
    gap = report.mean(GAP)
    if not gap <= max_logprob_gap:
        raise LogprobGapError(
            f"step {step}: trainer and engine logprobs differ by {gap:.6g} on average (at most {report.gap_max:.6g}), "
            f"the bound is trainer.max_logprob_gap={max_logprob_gap:g}; the weights are untouched"
        )


def _means(reports: Sequence[Report]) -> Metrics:
    names = {name for report in reports for name in report.sums} - {GAP, FRESH, TOKENS}
    return {f"train/{name}": sum(report.mean(name) for report in reports) / len(reports) for name in sorted(names)}
