"""Rules about the batch."""

from __future__ import annotations

from collections.abc import Iterator

from slime_launch.checks.facts import Facts, Rule
from slime_launch.errors import Problem


def groups_can_be_compared(f: Facts) -> Iterator[Problem]:
    """Group-normalised advantages of one sample are always zero."""
    if f.config.algorithm.compares_group and f.config.rollout.group_size < 2:
        reason = "advantages compare the samples of one prompt, and one sample has none to compare with"
        yield Problem("rollout.group_size", f.config.rollout.group_size, reason, "give 2 or more")


def batch_divides(f: Facts) -> Iterator[Problem]:
    """Samples divide over data-parallel ranks and optimizer steps."""
    samples = f.config.rollout.num_prompts * f.config.rollout.group_size
    parts = f.config.trainer.num_minibatches * f.config.trainer.parallel.dp
    if samples % parts:
        reason = f"{samples} samples a step do not divide by num_minibatches x parallel.dp = {parts}"
        mend = "change num_prompts, group_size or one of them"
        yield Problem("trainer.num_minibatches", f.config.trainer.num_minibatches, reason, mend)


def rows_fit_the_tokens(f: Facts) -> Iterator[Problem]:
    """A micro-batch holds the longest row that is to be expected."""
    trainer, rollout = f.config.trainer, f.config.rollout
    longest = rollout.expected_prompt_tokens + rollout.max_new_tokens
    if trainer.max_tokens is not None and trainer.max_tokens < longest:
        reason = f"one sample may take expected_prompt_tokens + max_new_tokens = {longest} tokens"
        yield Problem("trainer.max_tokens", trainer.max_tokens, reason, f"give {longest} or more, or null")


RULES: tuple[Rule, ...] = (groups_can_be_compared, batch_divides, rows_fit_the_tokens)
