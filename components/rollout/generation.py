"""Groups are brought to their end: one call of the generate function for each rollout, all at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from components.rollout.client import Client
from components.rollout.engine import SampleEngine, new_sample
from components.rollout.groups import Group
from components.rollout.prompts import Renderer
from slime_launch.errors import ComponentError
from slime_launch.interfaces import Generate, Images
from slime_launch.types import Sample, Status

T = TypeVar("T")
_BY_TOKEN = ("response_ids", "logprobs", "loss_mask", "weight_versions")
"""Fields of a sample with one entry for each token of the response."""
Seeds = Callable[[int, int], int]
"""(Group, index) -> the seed of that rollout's sampling."""


@dataclass
class Sent:
    """Images in the requests that the engines answered."""

    images: int = 0


@dataclass(frozen=True)
class Generator:
    """Generates the rollouts of groups.

    sampling: SGLang's sampling parameters, over which each prompt has its own, and over these ``forced``. seeds: one a
    rollout. vocabulary: the model's, in tokens; None where it is not known. images: reads those that come with later
    turns. trains: what is sampled is trained on, so a generate function may not change how.
    """

    client: Client
    renderer: Renderer
    generate: Generate
    sampling: Mapping[str, Any]
    seeds: Seeds
    forced: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: int | None = None
    images: Images | None = None
    trains: bool = True

    def over(self, sampling: Mapping[str, Any], seeds: Seeds, forced: Mapping[str, Any]) -> Generator:
        """The same with other sampling parameters and seeds, for what is not trained on."""
        return replace(self, sampling={**self.sampling, **sampling}, seeds=seeds, forced=forced, trains=False)

    async def run(self, group: Group, size: int, sent: Sent) -> None:
        """Bring ``size`` rollouts of a group to an end, each from where it stands.

        Rollouts that ended stay as they are, and those whose requests are aborted keep what there is; one that cannot
        go on from there (say, of several samples) begins anew. The first error ends it and cancels the other rollouts.
        """
        group.set_aside(keep=True)
        # in order of index, so that nothing depends on which ended first
        waiting = [index for index in range(size) if not _ended(group.rollouts.get(index))]
        await together(self._rollout(group, index, sent) for index in waiting)

    async def _rollout(self, group: Group, index: int, sent: Sent) -> None:
        (sample,) = group.rollouts.setdefault(index, [new_sample(group.rendered, group.number, index)])
        seed = {"sampling_seed": self.seeds(group.number, index)}
        sampling = {**self.sampling, **sample.prompt.sampling, **self.forced, **seed}
        engine = SampleEngine(
            self.client.session(),
            self.renderer,
            group.rendered,
            sampling,
            self.vocabulary,
            self.images,
            self.trains,
        )
        try:
            made = await self.generate(sample, engine)
        except asyncio.CancelledError:
            sample.status = Status.PENDING  # it may be in the middle of anything, and cannot go on
            raise
        finally:
            sent.images += engine.images_sent
        group.rollouts[index] = _numbered([made] if isinstance(made, Sample) else list(made), group.number, index)


async def together(jobs: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All at once, results in order; the first error cancels the others and is raised itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(job) for job in jobs]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None  # the others fail for the same cause, or by being cancelled
    return [task.result() for task in tasks]


def _ended(samples: list[Sample] | None) -> bool:
    return samples is not None and all(sample.status not in (Status.PENDING, Status.ABORTED) for sample in samples)


def _numbered(samples: list[Sample], group: int, index: int) -> list[Sample]:
    """The samples of one rollout with their place in it."""
    rollout = f"rollout {index} of group {group}"
    if not samples:
        raise ComponentError(f"rollout.generate: no sample for {rollout}; return at least one")
    for part, sample in enumerate(samples):
        if not isinstance(sample, Sample):
            raise ComponentError(f"rollout.generate: gave {sample!r:.100} for {rollout}")
        if sample.status is Status.PENDING:
            raise ComponentError(
                f"rollout.generate: left sample {part} of {rollout} pending; ask the engine at least once, or set its "
                "status"
            )
        _check_lengths(sample, f"sample {part} of {rollout}")
        sample.group, sample.index, sample.part = group, index, part
    if len({id(sample) for sample in samples}) < len(samples):
        raise ComponentError(
            f"rollout.generate: gave the same sample twice for {rollout}, and its tokens would train twice; begin "
            "further parts with engine.part"
        )
    return samples


def _check_lengths(sample: Sample, name: str) -> None:
    lengths = {field: len(getattr(sample, field)) for field in _BY_TOKEN}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{field} {length}" for field, length in lengths.items())
        raise ComponentError(
            f"rollout.generate: {name} has lists of unequal lengths ({told}); add tokens by engine.generate, "
            "add_given, add_sampled or add_turn"
        )
