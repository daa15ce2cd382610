"""Held-out sets: each asked in its own way, sampled and greedily, all at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from components.rollout.client import Refused
from components.rollout.collect import REFUSED
from components.rollout.elsewhere import NO_ANSWER, Elsewhere, TextSample, as_text, check_sendable
from components.rollout.engine import new_sample
from components.rollout.generation import Generator, Sent, together
from components.rollout.groups import Group
from components.rollout.metrics import evaluated
from components.rollout.prompts import Rendered
from components.rollout.sampling import check_evaluation
from components.rollout.scoring import score
from components.rollout.seeds import sampling_seed
from slime_launch.errors import ComponentError, LaunchError
from slime_launch.interfaces import UNANSWERED, DataSource, Reward
from slime_launch.types import Metrics, Prompt, Sample, Status

_ATTEMPTS = 3


@dataclass(frozen=True)
class HeldOut:
    """One held-out set.

    samples: of each prompt. sampling: over the rollout's. part: the reward part that is its score, None for the mixed
    reward. pass_at: k of pass@k. server: somebody else's, asked in place of the run's engines. known: what such a one
    that is asked once only was reported with, by whether it was greedy.
    """

    name: str
    prompts: Sequence[Rendered]
    samples: int
    sampling: Mapping[str, Any]
    reward: Reward
    part: str | None
    pass_at: Sequence[int]
    server: Elsewhere | None = None
    known: dict[bool, Metrics] = field(default_factory=dict)


@dataclass(frozen=True)
class Defaults:
    """What a set has that says nothing else."""

    samples: int
    reward: Reward
    part: str | None
    pass_at: Sequence[int]


def named_sets(
    data: DataSource, nodes: Mapping[str, Mapping[str, Any]], open_node: Callable[[Mapping[str, Any]], DataSource]
) -> dict[str, tuple[list[Prompt], Mapping[str, Any]]]:
    """Every held-out set with its settings: the run's data source's, and those of entries with a source or a server of
    their own. A server without a source is asked the run's held-out sets.

    The only set of such an entry is called as the entry is, several are called ``<entry>_<set>``.
    Raises ComponentError for settings of a set that does not exist, two sets of one name, an empty set, and where no
    set is left that the run's engines are asked.
    """
    own = {name for name, node in nodes.items() if node["data"] or node.get("endpoint")}
    held = data.eval_sets()
    found = {name: (prompts, {} if name in own else nodes.get(name, {})) for name, prompts in held.items()}
    if lost := sorted(nodes.keys() - own - found.keys()):
        raise ComponentError(
            f"rollout.eval_sets.{lost[0]}: the data has no held-out set of that name, only {sorted(found)}; name one "
            "of them or give it data"
        )
    for entry in sorted(own):
        sets = open_node(nodes[entry]["data"]).eval_sets() if nodes[entry]["data"] else held
        for name, prompts in sets.items():
            full = entry if len(sets) == 1 else f"{entry}_{name}"
            if full in found:
                raise ComponentError(f"rollout.eval_sets.{entry}: there are two held-out sets called {full}; rename it")
            found[full] = (prompts, {**nodes[entry], "entry": entry})
    if all(node.get("endpoint") for _, node in found.values()):
        raise ComponentError(
            "data: there is no held-out set, and a run reports scores on one; name rows that are not trained on, e.g. "
            """'data.eval_paths={late: "train.jsonl[-100:]"}'"""
        )
    if empty := sorted(name for name, (prompts, _) in found.items() if not prompts):
        raise ComponentError(f"data: the held-out set {empty[0]} is empty")
    if strange := sorted(name for name in found if "/" in name):
        raise ComponentError(f"data: a held-out set is called {strange[0]}; its name may hold no slash")
    return found


def held_out(
    sets: Mapping[str, tuple[Sequence[Prompt], Mapping[str, Any]]],
    render: Callable[[Prompt], Rendered],
    reward: Callable[[Mapping[str, Any]], Reward],
    default: Defaults,
) -> list[HeldOut]:
    """The sets, rendered, with what each has of its own. reward: makes one from its node."""
    made = []
    asked = {node["entry"]: node["endpoint"] for _, node in sets.values() if node.get("endpoint")}
    servers = {entry: Elsewhere(entry, **endpoint) for entry, endpoint in asked.items()}
    for name, (prompts, node) in sets.items():
        own, server = node.get("reward"), servers.get(node.get("entry", ""))
        for prompt in prompts:
            check_evaluation(prompt)
            if server is not None:
                check_sendable(node["entry"], node["endpoint"]["fields"], prompt)
        made.append(
            HeldOut(
                name, [as_text(prompt) if server else render(prompt) for prompt in prompts], server=server,
                samples=node.get("samples") or default.samples, sampling=node.get("sampling", {}),
                reward=reward(own["node"]) if own else default.reward, part=own["score"] if own else default.part,
                pass_at=node.get("pass_at") or default.pass_at,
            )
        )  # fmt: skip
    return made


async def evaluate(sets: Sequence[HeldOut], generator: Generator, seed: int) -> Metrics:
    """``eval/<set>`` sampled, ``eval/<set>/greedy`` at temperature 0, ``eval/<set>/pass@k`` of the sampled ones.

    A prompt that the engines refuse is told, counted (``eval/<set>/dropped/refused``) and left out of the scores.
    seed: the run's; a set's samples have the same seeds at each step. No request is left running, after an error
    neither.
    """
    try:
        told = await together(_ask(one, generator, seed, greedy) for one in sets for greedy in (False, True))
    except BaseException:
        with suppress(LaunchError):
            await generator.client.abort_all()
        raise
    metrics = {name: value for metrics in told for name, value in metrics.items()}
    if any(name.endswith(f"/dropped/{REFUSED}") for name in metrics):
        await generator.client.abort_all()  # of the same prompts, those that were under way
    return metrics


async def _ask(one: HeldOut, generator: Generator, seed: int, greedy: bool) -> Metrics:
    if greedy in one.known or (greedy and one.server is not None and not one.server.takes_temperature):
        return one.known.get(greedy, {})

    def seeds(group: int, index: int) -> int:
        return sampling_seed(seed, "eval", one.name, group, index)

    count = 1 if greedy else one.samples
    mine = generator.over(one.sampling, seeds, {"temperature": 0.0} if greedy else {})
    said = ""
    if one.server is None:
        samples, said = await _by_engines(one, mine, count)
    else:
        samples = await _elsewhere(one, one.server, mine, count)
    await score(one.reward, samples)
    metrics = _report(one, samples, greedy, said)
    if one.server is not None and one.server.once:
        one.known[greedy] = metrics
    return metrics


async def _by_engines(one: HeldOut, generator: Generator, count: int) -> tuple[list[Sample], str]:
    """The samples, and what there is to tell of prompts that the engines refused."""
    groups = [Group(number, rendered) for number, rendered in enumerate(one.prompts)]
    refused = [said for said in await together(_bring_up(generator, group, count) for group in groups) if said]
    told = f"goes on without {len(refused)} of {len(groups)} prompts; {refused[0]}" if refused else ""
    if refused:
        print(f"evaluation of {one.name}: {told}", flush=True)
    return list(chain.from_iterable(group.samples for group in groups)), told


async def _elsewhere(one: HeldOut, server: Elsewhere, generator: Generator, count: int) -> list[Sample]:
    def sampling(prompt: Prompt) -> Mapping[str, Any]:
        return {**generator.sampling, **prompt.sampling, **generator.forced}

    return list(await server.answers(one.prompts, count, sampling, generator.seeds))


async def _bring_up(generator: Generator, group: Group, count: int) -> str:
    """Generate; what an engine said that refused it, and empty where none did."""
    for _ in range(_ATTEMPTS):
        try:
            await generator.run(group, count, Sent())
        except Refused as error:
            group.rollouts = {index: [_refused(group, index)] for index in range(count)}
            return f"one of source {group.rendered.prompt.source}: {error}"
        if group.whole(count):
            return ""
    raise ComponentError(f"evaluation: prompt {group.number} was cut short {_ATTEMPTS} times; see the engines' logs")


def _refused(group: Group, index: int) -> Sample:
    sample = new_sample(group.rendered, group.number, index)
    sample.status, sample.dropped = Status.ABORTED, REFUSED
    return sample


def _report(one: HeldOut, samples: Sequence[Sample], greedy: bool, said: str) -> Metrics:
    if any(isinstance(sample, TextSample) and sample.touched for sample in samples):
        raise ComponentError(
            f"evaluation of {one.name}: its reward looks at tokens or logprobs, and another server's answers are text; "
            f"give rollout.eval_sets a reward for it that looks at neither"
        )
    left = [sample for sample in samples if not sample.dropped]
    lost = Counter(sample.dropped for sample in samples if sample.dropped)
    if not left:
        raise ComponentError(
            f"evaluation of {one.name}: no sample got a reward ({dict(lost)}){said and '; it ' + said}"
        )
    name = f"{one.name}/greedy" if greedy else one.name
    told = {} if one.server is None else {f"eval/{name}/{UNANSWERED}": float(lost.pop(NO_ANSWER, 0))}
    dropped = {f"eval/{name}/dropped/{reason}": float(count) for reason, count in lost.items()}
    return evaluated(name, left, one.part, () if greedy else one.pass_at) | dropped | told
