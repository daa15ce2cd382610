"""One step's groups: begun, generated, scored as soon as each is whole, filtered, until there are enough."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from math import ceil

from components.rollout.buffer import Buffer
from components.rollout.client import Refused
from components.rollout.generation import Generator, Sent
from components.rollout.groups import ENDED, Group
from components.rollout.scoring import TOO_FEW, Judge, Scored
from slime_launch.errors import ComponentError, LaunchError
from slime_launch.types import UNSAMPLED

_ATTEMPTS = 3
"""How often a group is gone on with that an engine cuts short by itself."""
REFUSED = "refused"
"""The reason of a group whose prompt the engines do not take."""


@dataclass(frozen=True)
class Rules:
    """How a step is collected.

    num_prompts: groups wanted. group_size: rollouts of each. oversample: groups begun for each one wanted.
    draw_limit: groups drawn for each one wanted before the step gives up. keep_when_insufficient: then take groups that
    a filter dropped, instead of ending the run. keep: keep what was cut short; max_lag: unless its weights are older.
    patience_s: how long a generate function may take to end once its requests are aborted, or it is cancelled.
    """

    num_prompts: int
    group_size: int
    oversample: float = 1.0
    draw_limit: int = 8
    keep_when_insufficient: bool = False
    keep: bool = False
    max_lag: int = 1
    patience_s: float = 60.0

    def begun_for(self, wanted: int) -> int:
        """Groups to begin for so many wanted; rounded up, but not for the last digit of a product such as 10 x 1.1."""
        return ceil(wanted * self.oversample - 1e-9)


@dataclass(slots=True)
class Collected:
    """What came of a step.

    groups: those to train on, by number. scored: these and those that were dropped. drops: groups dropped, by reason.
    drawn: groups begun. surplus: whole groups that were not needed. cut: rollouts cut short. kept: samples that go on
    later, or wait. kept_tokens, lost_tokens: sampled ones of unused groups, kept or not. anew: samples kept before that
    were too old, or are none of this run's. tokens: sampled in this step. images_sent: in requests that were answered.
    refusal: what an engine said of the last prompt that it did not take.
    generate_s: until the last generation ended, and what aborting took. score_s: how much longer scoring took.
    """

    groups: list[Scored] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)
    drops: Counter[str] = field(default_factory=Counter)
    drawn: int = 0
    surplus: int = 0
    cut: int = 0
    kept: int = 0
    kept_tokens: int = 0
    lost_tokens: int = 0
    anew: int = 0
    tokens: int = 0
    images_sent: int = 0
    refusal: str = ""
    generate_s: float = 0.0
    score_s: float = 0.0


async def collect(rules: Rules, buffer: Buffer, generator: Generator, judge: Judge, version: int) -> Collected:
    """``num_prompts`` scored groups. version: of the weights that the engines serve.

    Once there are enough, every other request is aborted, and its prompt goes first in the next step: with its tokens
    where these are kept, else from its beginning. So do whole groups that were not needed. Which groups come first
    depends on time as soon as more are begun than wanted; with ``oversample`` 1 nothing does.

    Raises ComponentError when filters drop so many groups that ``draw_limit`` is reached, and whatever a generate
    function, an engine or a reward raises; no request is left running in any case.
    """
    return await _Step(rules, buffer, generator, judge, version).run()


class _Step:
    def __init__(self, rules: Rules, buffer: Buffer, generator: Generator, judge: Judge, version: int) -> None:
        self._rules, self._buffer, self._generator, self._judge = rules, buffer, generator, judge
        self._version = version
        self._running: dict[asyncio.Task[Scored | None], Group] = {}
        self._scoring: set[int] = set()
        self._closed = False
        self._sent = Sent()
        self._done = Collected()

    async def run(self) -> Collected:
        began = self._generated = time.perf_counter()
        try:
            self._begin(self._rules.begun_for(self._rules.num_prompts))
            while len(self._done.groups) < self._rules.num_prompts and self._running:
                ended, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
                self._take(ended)
                self._draw_more()
            scored = time.perf_counter()
            unused = await self._end()
        except BaseException:
            await self._break_off()
            raise
        self._settle(unused)
        self._done.score_s = scored - self._generated
        self._done.generate_s = time.perf_counter() - began - self._done.score_s
        return self._done

    def _begin(self, count: int) -> None:
        oldest = self._version - (self._rules.max_lag if self._rules.keep else 0)
        for group in self._buffer.take(count):
            self._done.anew += group.forget(oldest, self._rules.group_size)
            self._running[asyncio.create_task(self._bring_up(group))] = group
        self._done.drawn += count

    async def _bring_up(self, group: Group) -> Scored | None:
        """Generate and score; None for a group that was cut short."""
        for _ in range(_ATTEMPTS):
            try:
                await self._generator.run(group, self._rules.group_size, self._sent)
            except Refused as error:
                self._done.refusal = f"; a prompt of source {group.rendered.prompt.source}: {error}"
                return Scored(group, [], Counter(), REFUSED)
            if self._closed:
                return None
            if group.whole(self._rules.group_size):
                self._generated = time.perf_counter()
                self._scoring.add(group.number)
                return await self._judge(group)
        raise ComponentError(
            f"group {group.number} (source {group.rendered.prompt.source}): cut short {_ATTEMPTS} times, and the "
            "launcher did not ask for it; see the engines' logs, or rollout.generate"
        )

    def _take(self, ended: Iterable[asyncio.Task[Scored | None]]) -> None:
        for task in sorted(ended, key=lambda task: self._running[task].number):
            scored = task.result()
            del self._running[task]
            if scored is None:
                continue
            self._done.scored.append(scored)
            if scored.reason:
                self._done.drops[scored.reason] += 1
            else:
                self._done.groups.append(scored)

    def _draw_more(self) -> None:
        """Begin more groups when those in hand and under way cannot be enough any more."""
        rules = self._rules
        missing = rules.num_prompts - len(self._done.groups) - len(self._running)
        left = max(rules.draw_limit * rules.num_prompts, rules.begun_for(rules.num_prompts)) - self._done.drawn
        if missing > 0 and left > 0:
            self._begin(min(rules.begun_for(missing), left))

    async def _end(self) -> list[Group]:
        """Let nothing run any more; the groups that are not used."""
        self._closed = True
        missing = self._rules.num_prompts - len(self._done.groups)
        if missing > 0:
            self._fill_up(missing)
        surplus = self._done.groups[self._rules.num_prompts :]
        del self._done.groups[self._rules.num_prompts :]
        self._done.scored = [scored for scored in self._done.scored if scored not in surplus]
        return [*(scored.undo() for scored in surplus), *(await self._cut_short())]

    def _fill_up(self, missing: int) -> None:
        dropped = [scored for scored in self._done.scored if scored.reason not in ("", TOO_FEW, REFUSED)]
        if not self._rules.keep_when_insufficient or len(dropped) < missing:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(self._done.drops.items()))
            raise ComponentError(
                f"rollout.filters: {len(self._done.groups)} of {self._rules.num_prompts} groups are left of "
                f"{self._done.drawn}, the most that rollout.draw_limit={self._rules.draw_limit} allows; dropped by "
                f"reason: {reasons}; raise it, set rollout.keep_when_insufficient=true, or mend what drops them"
                f"{self._done.refusal}"
            )
        self._done.groups += sorted(dropped, key=lambda scored: scored.group.number)[:missing]

    async def _cut_short(self) -> list[Group]:
        if not (self._running or self._done.refusal):
            return []
        for task, group in self._running.items():
            if group.number in self._scoring:
                task.cancel()
        await self._generator.client.abort_all()
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=self._rules.patience_s)
            if await self._cancel(late):
                raise ComponentError("rollout.generate: takes no notice of being cancelled; let CancelledError pass")
        results = await asyncio.gather(*self._running, return_exceptions=True)
        return [group for group, end in zip(self._running.values(), results, strict=True) if self._is_unused(end)]

    def _is_unused(self, end: Scored | BaseException | None) -> bool:
        """Whether a group whose task came to this end after all was decided may be used later."""
        if isinstance(end, Exception):
            raise end
        if isinstance(end, Scored):
            if end.reason == REFUSED:
                self._done.drops[REFUSED] += 1
                return False
            end.undo()
        return True

    async def _break_off(self) -> None:
        """After an error: end every task and every request, whatever else fails."""
        await self._cancel(self._running)
        with suppress(LaunchError):
            await self._generator.client.abort_all()

    async def _cancel(self, tasks: Collection[asyncio.Task[Scored | None]]) -> int:
        """Cancel them and wait until they end, but not for ever; how many did not."""
        for task in tasks:
            task.cancel()
        if not tasks:
            return 0
        ended, deaf = await asyncio.wait(tasks, timeout=self._rules.patience_s)
        await asyncio.gather(*ended, return_exceptions=True)
        return len(deaf)

    def _settle(self, unused: list[Group]) -> None:
        done = self._done
        for group in [*(scored.group for scored in done.scored), *unused]:
            done.tokens += sum(sample.weight_versions.count(self._version) for sample in group.samples)
        for group in unused:
            done.surplus += group.whole(self._rules.group_size)
            done.cut += sum(sample.status not in ENDED for sample in group.samples)
            done.lost_tokens += _tokens(group)
            group.set_aside(self._rules.keep)
            done.lost_tokens -= _tokens(group)
            done.kept_tokens += _tokens(group)
            done.kept += len(group.samples)
        self._buffer.give_back(unused)
        done.groups.sort(key=lambda scored: scored.group.number)
        done.images_sent = self._sent.images


def _tokens(group: Group) -> int:
    return sum(version != UNSAMPLED for sample in group.samples for version in sample.weight_versions)
