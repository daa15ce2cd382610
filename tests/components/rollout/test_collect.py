"""Over-sampling, filters, aborts and partial rollouts, against an engine that answers over HTTP without a model."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components.rollout.worker import RolloutWorker
from slime_launch.errors import ComponentError
from slime_launch.interfaces import Engine
from slime_launch.types import Sample, Status
from tests.components.rollout.http_engine import Endless, HttpEngine, make_worker, serving, token_of

HERE = __name__
SLOW_S = 0.005
STEPS = 5


class Constant:
    """Scores every answer by its prompt's number: below ``equal`` all samples alike, else by index."""

    def __init__(self, equal: int) -> None:
        self.equal = equal

    async def score(self, samples: Sequence[Sample]) -> list[float]:
        return [1.0 if int(one.prompt.label) < self.equal else float(one.index % 2) for one in samples]


class Dropping:
    """Scores 1, and drops the samples of index ``index`` and above."""

    def __init__(self, index: int) -> None:
        self.index = index

    async def score(self, samples: Sequence[Sample]) -> list[float]:
        for one in samples:
            one.dropped = "reward_judge" if one.index >= self.index else ""
        return [float(one.index) for one in samples]


class Failing:
    """Fails on the prompt ``label``; any other takes for ever."""

    def __init__(self, label: str) -> None:
        self.label = label

    async def score(self, samples: Sequence[Sample]) -> list[float]:
        if samples[0].prompt.label == self.label:
            raise ComponentError("the judge is gone")
        await asyncio.sleep(60)
        return [0.0] * len(samples)


class Waits:
    """Scores by index; ``prompt`` takes for ever."""

    async def score(self, samples: Sequence[Sample]) -> list[float]:
        samples[0].reward_parts = {"half": 1.0}
        if samples[0].prompt.label == "1":
            await asyncio.sleep(60)
        return [float(one.index) for one in samples]


class Refusable(Endless):
    """The first ``up_to`` prompts ask for what the engine refuses."""

    def __init__(self, seed: int, up_to: int) -> None:
        super().__init__(seed)
        self.up_to = up_to

    def of(self, number: int) -> dict[str, Any]:
        return {"source": "long", "sampling": {"top_k": 9}} if number < self.up_to else {}


async def two_parts(sample: Sample, engine: Engine) -> list[Sample]:
    """A rollout of two samples, the second with a prompt of its own."""
    first = await engine.generate(sample)
    second = await engine.generate(engine.part(sample, [{"role": "user", "content": "again"}]))
    return [first, second]


async def twice(sample: Sample, engine: Engine) -> list[Sample]:
    """The same sample as two parts."""
    return [await engine.generate(sample)] * 2


async def uneven(sample: Sample, engine: Engine) -> Sample:
    """Writes ids past ``Sample.add_given``."""
    await engine.generate(sample)
    sample.response_ids += [5, 6]
    return sample


async def insists(sample: Sample, engine: Engine, **sampling: Any) -> Sample:
    """Asks in its own way."""
    return await engine.generate(sample, **engine.sampling | sampling)


async def unyielding(sample: Sample, engine: Engine) -> Sample:
    """Asks until it gets an answer, for 3 s."""
    ends = time.monotonic() + 3
    while (await engine.generate(sample)).status is Status.ABORTED:
        if time.monotonic() > ends:
            raise ComponentError("nobody stopped it")
    return sample


RELEASED: list[bool] = []


async def deaf(sample: Sample, engine: Engine) -> Sample:
    """Takes no notice of being cancelled at prompt 1, until it is released."""
    while sample.prompt.label == "1" and not RELEASED:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
    return await engine.generate(sample)


def node(name: str, **args: Any) -> dict[str, Any]:
    return {"_target_": f"{HERE}.{name}", **args}


def in_chunks(engine: HttpEngine) -> dict[int, list[tuple[int, float]]]:
    """Everything the engine sampled, by seed: (token, logprob) in order of time."""
    out: dict[int, list[tuple[int, float]]] = {}
    for body, meta in engine.exchanges:
        pairs = [(token, logprob) for logprob, token, _ in meta["output_token_logprobs"]]
        out.setdefault(body["sampling_params"]["sampling_seed"], []).extend(pairs)
    return out


def seed_of(made: RolloutWorker, sample: Sample) -> int:
    return made._seed_of(sample.group, sample.index)


def every_third_is_slow(body: Mapping[str, Any]) -> float:
    """One request in three takes longer, whatever it asks."""
    return SLOW_S if body["sampling_params"]["sampling_seed"] % 3 == 0 else 0.001


def over(**changes: Any) -> dict[str, Any]:
    return {"oversample": 2.0, "group_size": 2} | changes


def train(
    made: RolloutWorker, engine: HttpEngine, steps: Sequence[int]
) -> tuple[list[list[Sample]], list[dict[str, float]]]:
    """Steps with the weights that a run would have; nothing runs on between them."""
    batches, metrics = [], []
    for step in steps:
        engine.version = step - 1
        samples, told = made.generate(step)
        assert engine.running == 0
        batches.append(samples)
        metrics.append(told)
    return batches, metrics


def test_without_keeping_prompts_begin_anew_and_none_is_lost(checkpoint: Path) -> None:
    with serving(HttpEngine(tick_s=every_third_is_slow)) as engine:
        made = make_worker(checkpoint, engine.url, **over())
        batches, metrics = train(made, engine, range(1, STEPS + 1))
        made.stop()
    seen = Counter(sample.group for batch in batches for sample in batch)
    assert set(seen.values()) == {2} and len(seen) == 3 * STEPS
    for step, (batch, told) in enumerate(zip(batches, metrics, strict=True), 1):
        assert [(one.group, one.index) for one in batch] == sorted((one.group, one.index) for one in batch)
        assert {version for one in batch for version in one.weight_versions} == {step - 1}
        assert all(one.status is Status.COMPLETED for one in batch)
        assert told["rollout/groups_begun"] == 6 and told["rollout/partial/kept_tokens"] == 0
    waiting = {group.number for group in made._buffer.held}
    assert seen.keys() | waiting == set(range(made._buffer._next)) and not seen.keys() & waiting
    assert sum(told["rollout/partial/cut"] for told in metrics) > 0


def test_kept_tokens_go_on_and_each_is_trained_once(checkpoint: Path) -> None:
    with serving(HttpEngine(length=lambda body: 12, tick_s=every_third_is_slow)) as engine:
        made = make_worker(checkpoint, engine.url, **over(partial={"keep": True}))
        batches, metrics = train(made, engine, range(1, STEPS + 1))
        held = [sample for group in made._buffer.held for sample in group.samples]
        made.stop()
    sampled = in_chunks(engine)
    trained = [sample for batch in batches for sample in batch]
    assert len({(one.group, one.index) for one in trained + held}) == len(trained + held)
    for sample in trained + held:
        pairs = list(zip(sample.response_ids, sample.logprobs, strict=True))
        assert sampled.pop(seed_of(made, sample)) == pairs
    assert not any(sampled.values())  # what is left began and was cut before its first token
    assert any(len(set(sample.weight_versions)) > 1 for sample in trained)
    for step, (batch, told) in enumerate(zip(batches, metrics, strict=True), 1):
        versions = [version for one in batch for version in one.weight_versions]
        assert all(one.weight_versions == sorted(one.weight_versions) for one in batch) and max(versions) < step
        assert told["rollout/off_policy_ratio"] == pytest.approx(sum(v < step - 1 for v in versions) / len(versions))
        assert told["rollout/weight_lag/max"] == step - 1 - min(versions)
    assert sum(told["rollout/partial/lost_tokens"] for told in metrics) == 0


def test_a_continuation_is_what_would_have_come(checkpoint: Path) -> None:
    """Its seed and place are the same, and its budget is what is left."""
    with serving(HttpEngine(length=lambda body: 99, tick_s=every_third_is_slow)) as engine:
        made = make_worker(checkpoint, engine.url, **over(partial={"keep": True}))
        batches, _ = train(made, engine, range(1, 4))
        made.stop()
    for sample in (sample for batch in batches for sample in batch):
        start = len(sample.prompt_ids)
        assert sample.response_ids == [token_of(seed_of(made, sample), start + place) for place in range(16)]
        assert sample.status is Status.TRUNCATED


@pytest.mark.parametrize("mask_old", [False, True])
def test_old_tokens_count_or_not(checkpoint: Path, mask_old: bool) -> None:
    with serving(HttpEngine(length=lambda body: 12, tick_s=every_third_is_slow)) as engine:
        made = make_worker(checkpoint, engine.url, **over(partial={"keep": True, "mask_old": mask_old}))
        batches, metrics = train(made, engine, range(1, 4))
        made.stop()
    for step, batch in enumerate(batches, 1):
        for sample in batch:
            assert sample.loss_mask == [int(not mask_old or version == step - 1) for version in sample.weight_versions]
    assert any(told["rollout/off_policy_ratio"] > 0 for told in metrics)


def test_tokens_that_are_too_old_are_sampled_anew(checkpoint: Path) -> None:
    with serving(HttpEngine(length=lambda body: 12, tick_s=every_third_is_slow)) as engine:
        made = make_worker(checkpoint, engine.url, **over(partial={"keep": True, "max_lag": 1}))
        batches, metrics = train(made, engine, (1, 2, 5, 6))
        made.stop()
    assert metrics[2]["rollout/partial/anew"] == metrics[1]["rollout/partial/kept"] > 0
    for step, batch in zip((1, 2, 5, 6), batches, strict=True):
        assert min(version for one in batch for version in one.weight_versions) >= step - 2
        assert all(len(one.response_ids) == 12 for one in batch)


def test_a_saved_run_goes_on_with_what_was_kept(checkpoint: Path) -> None:
    """The state is JSON, and a new worker does with it what the old one does."""
    with serving(HttpEngine(length=lambda body: 12, tick_s=every_third_is_slow)) as engine:
        old = make_worker(checkpoint, engine.url, **over(partial={"keep": True}))
        train(old, engine, (1, 2))
        state = json.loads(json.dumps(old.state_dict()))
        new = make_worker(checkpoint, engine.url, **over(partial={"keep": True}))
        new.load_state_dict(json.loads(json.dumps(state)))
        assert new._buffer.held == old._buffer.held and new.state_dict() == state
        assert sum(len(sample.response_ids) for group in new._buffer.held for sample in group.samples) > 0
        engine.exchanges.clear()
        (batch,), _ = train(new, engine, (3,))
        old.stop(), new.stop()
    kept = {(s["group"], s["index"]): s["response_ids"] for group in state["held"] for s in group["samples"]}
    for sample in batch:
        before = kept.get((sample.group, sample.index), [])
        assert sample.response_ids[: len(before)] == before
        mine = [pair for body, meta in engine.exchanges for pair in meta["output_token_logprobs"]
                if body["sampling_params"]["sampling_seed"] == seed_of(new, sample)]  # fmt: skip
        assert sample.response_ids[len(before) :] == [token for _, token, _ in mine]


@pytest.mark.parametrize("changes", [{"partial": {"keep": True}, "group_size": 2}, {"partial": {"keep": False}}])
def test_a_run_goes_on_with_smaller_groups_or_without_keeping(checkpoint: Path, changes: dict[str, Any]) -> None:
    with serving(HttpEngine(length=lambda body: 12, tick_s=every_third_is_slow)) as engine:
        old = make_worker(checkpoint, engine.url, **over(group_size=3, partial={"keep": True}))
        train(old, engine, (1,))
        new = make_worker(checkpoint, engine.url, **over(group_size=3) | changes)
        new.load_state_dict(json.loads(json.dumps(old.state_dict())))
        (batch,), (metrics,) = train(new, engine, (2,))
        old.stop(), new.stop()
    assert metrics["rollout/partial/anew"] > 0
    assert all(one.index < new._rules.group_size and len(one.response_ids) == 12 for one in batch)
    if not new._rules.keep:
        assert {version for one in batch for version in one.weight_versions} == {1}


def test_parts_that_were_cut_short_begin_anew(checkpoint: Path) -> None:
    """A rollout of several samples cannot go on in the middle, and those that ended are kept whole."""
    with serving(HttpEngine(tick_s=every_third_is_slow)) as engine:
        made = make_worker(
            checkpoint, engine.url,
            **over(partial={"keep": True}, generate=node("two_parts", _partial_=True)),
        )  # fmt: skip
        batches, _ = train(made, engine, range(1, STEPS + 1))
        made.stop()
    for batch in batches:
        assert [(one.index, one.part) for one in batch] == [(0, 0), (0, 1), (1, 0), (1, 1)] * 3
        assert all(len(one.response_ids) == 4 for one in batch)


class Cuts(HttpEngine):
    """Cuts its second request short by itself."""

    asked = 0

    async def generate(self, request: Any) -> Any:
        self.asked += 1
        if self.asked == 2:
            asyncio.get_running_loop().call_later(0.02, self.cut)
        return await super().generate(request)

    def cut(self) -> None:
        self._aborts += 1


@pytest.mark.parametrize("method", ["generate", "evaluate"])
def test_parts_that_an_engine_cuts_short_by_itself_begin_anew(checkpoint: Path, method: str) -> None:
    with serving(Cuts(length=lambda body: 8, tick_s=lambda body: 0.01)) as engine:
        made = make_worker(
            checkpoint, engine.url, num_prompts=1, group_size=2, max_concurrency=1,
            generate=node("two_parts", _partial_=True),
        )  # fmt: skip
        told = getattr(made, method)(1)
        made.stop()
    assert any(meta["finish_reason"]["type"] == "abort" for _, meta in engine.exchanges)
    if method == "generate":
        assert [(one.index, one.part) for one in told[0]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
        assert all(len(one.response_ids) == 8 and one.status is Status.COMPLETED for one in told[0])
    else:
        assert {"eval/held_out", "eval/held_out/greedy"} <= told.keys()


def test_filters_drop_groups_and_others_take_their_place(checkpoint: Path) -> None:
    filters = {"equal": {"_target_": "components.rollout.filters.EqualRewards"}}
    with serving(HttpEngine()) as engine:
        made = make_worker(checkpoint, engine.url, reward=node("Constant", equal=4), filters=filters, pass_at=[1, 4])
        samples, told = made.generate(1)
        made.stop()
    assert list(dict.fromkeys(one.group for one in samples)) == [4, 5, 6]
    assert told["rollout/dynamic_filter/drop_zero_std_1.0"] == 4 and told["rollout/groups_begun"] == 7
    assert told["rollout/zero_std_ratio"] == 0 and told["rollout/reward"] == 0.5
    assert told["passrate/pass@1"] == pytest.approx((4 + 3 * 0.5) / 7) and told["passrate/pass@4"] == 1.0


def test_too_many_dropped_groups_end_the_step(checkpoint: Path) -> None:
    filters = {"equal": {"_target_": "components.rollout.filters.EqualRewards"}}
    settings: dict[str, Any] = {"reward": node("Constant", equal=11), "filters": filters, "draw_limit": 4}
    with serving(HttpEngine()) as engine:
        made = make_worker(checkpoint, engine.url, **settings)
        with pytest.raises(ComponentError, match=r"1 of 3 groups are left of 12.*draw_limit=4.*zero_std_1.0: 11"):
            made.generate(1)
        made.stop()
        made = make_worker(checkpoint, engine.url, keep_when_insufficient=True, **settings)
        samples, told = made.generate(1)
        made.stop()
    assert list(dict.fromkeys(one.group for one in samples)) == [0, 1, 11]
    assert told["rollout/dynamic_filter/drop_zero_std_1.0"] == 11


@pytest.mark.parametrize(("first_lost", "compares"), [(3, True), (1, True), (1, False)])
def test_samples_without_a_reward_leave_their_group(checkpoint: Path, first_lost: int, compares: bool) -> None:
    with serving(HttpEngine()) as engine:
        made = make_worker(
            checkpoint, engine.url, reward=node("Dropping", index=first_lost), compares_group=compares, draw_limit=2
        )
        if first_lost == 1 and compares:
            with pytest.raises(ComponentError, match=r"0 of 3 groups are left of 6.*too_few: 6"):
                made.generate(1)
        else:
            samples, told = made.generate(1)
            assert [one.index for one in samples] == list(range(first_lost)) * 3
            assert told["rollout/dropped_samples/reward_judge"] == 3 * (4 - first_lost)
        made.stop()


def test_a_prompt_that_no_engine_takes_is_dropped_and_counted(checkpoint: Path) -> None:
    with serving(HttpEngine(refuses=lambda body: body["sampling_params"].get("top_k") == 9)) as engine:
        made = make_worker(checkpoint, engine.url, data=node("Refusable", up_to=2))
        samples, told = made.generate(1)
        made.stop()
        assert list(dict.fromkeys(one.group for one in samples)) == [2, 3, 4] and engine.running == 0
        assert told["rollout/dynamic_filter/drop_refused"] == 2
        made = make_worker(checkpoint, engine.url, data=node("Refusable", up_to=99), draw_limit=2)
        with pytest.raises(ComponentError, match=r"0 of 3 groups.*refused: 6.*source long: .*refused a request: 400"):
            made.generate(1)
        made.stop()


def test_an_error_leaves_nothing_running(checkpoint: Path) -> None:
    with serving(HttpEngine(tick_s=every_third_is_slow, length=lambda body: 12)) as engine:
        made = make_worker(checkpoint, engine.url, group_size=2, num_prompts=8, reward=node("Failing", label="3"))
        with pytest.raises(ComponentError, match="the judge is gone"):
            made.generate(1)
        assert engine.running == 0
        made.stop()


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"reward": node("Failing", label="0")}, "the judge is gone"), ({"oversample": 1.5}, "no notice of being canc")],
)
def test_a_generate_function_that_cannot_be_cancelled_holds_up_nobody(
    checkpoint: Path, changes: dict[str, Any], said: str
) -> None:
    RELEASED.clear()
    with serving(HttpEngine()) as engine:
        made = make_worker(
            checkpoint, engine.url, generate=node("deaf", _partial_=True), **{"num_prompts": 2} | changes
        )
        made._rules = replace(made._rules, patience_s=0.2)
        with pytest.raises(ComponentError, match=said):
            made.generate(1)
        RELEASED.append(True)
        made.stop()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("twice", r"rollout\.generate: gave the same sample twice for rollout 0 of group 0"),
        ("uneven", r"rollout\.generate: .*rollout 0 of group 0.*response_ids 6, logprobs 4, loss_mask 4.*add_given"),
    ],
)
def test_what_a_generate_function_gives_back_is_checked(checkpoint: Path, name: str, said: str) -> None:
    with serving(HttpEngine()) as engine:
        made = make_worker(
            checkpoint, engine.url, num_prompts=1, max_concurrency=1, generate=node(name, _partial_=True)
        )
        with pytest.raises(ComponentError, match=said):
            made.generate(1)
        made.stop()


@pytest.mark.parametrize(
    ("sampling", "said", "also_held_out"),
    [
        ({"temperature": 0.1}, "sampling.temperature=0.1: the trainer", False),
        ({"temperature": None}, "sampling.temperature=None: the trainer", False),
        ({"repetition_penalty": 1.5}, "sampling.repetition_penalty=1.5: the trainer", False),
        ({"sampling_seed": 7}, "sampling.sampling_seed=7: every rollout has its own", True),
        ({"n": 2}, "sampling.n=2: a request makes one", True),
        ({"temperature": 0.7, "repetition_penalty": None, "min_new_tokens": 0, "top_k": 5, "stop": ["x"]}, None, False),
    ],
)
def test_a_generate_function_samples_as_the_trainer_counts(
    checkpoint: Path, sampling: dict[str, Any], said: str | None, also_held_out: bool
) -> None:
    """Held-out prompts may be sampled otherwise, but not by what is the launcher's own."""
    with serving(HttpEngine()) as engine:
        made = make_worker(
            checkpoint, engine.url, num_prompts=1, generate=node("insists", _partial_=True, **sampling),
            sampling={"temperature": 0.7, "max_new_tokens": 16},
        )  # fmt: skip
        for method, refused in (("generate", said), ("evaluate", said if also_held_out else None)):
            if refused is None:
                getattr(made, method)(1)
            else:
                with pytest.raises(ComponentError, match=rf"rollout\.generate: .*{refused}"):
                    getattr(made, method)(1)
        made.stop()
    assert all(sampling.items() <= body["sampling_params"].items() for body, _ in engine.exchanges)


def test_a_generate_function_that_asks_on_and_on_is_cancelled(checkpoint: Path) -> None:
    with serving(HttpEngine(tick_s=every_third_is_slow, length=lambda body: 12)) as engine:
        made = make_worker(
            checkpoint, engine.url, **over(num_prompts=2, oversample=3.0), generate=node("unyielding", _partial_=True)
        )
        made._rules = replace(made._rules, patience_s=0.2)
        samples, told = made.generate(1)
        made.stop()
    assert len(samples) == 4 and told["rollout/partial/cut"] > 0


def test_a_group_that_waits_for_its_score_is_kept_unscored(checkpoint: Path) -> None:
    with serving(HttpEngine()) as engine:
        made = make_worker(
            checkpoint, engine.url, **over(num_prompts=2, oversample=1.5, partial={"keep": True}), reward=node("Waits")
        )
        samples, told = made.generate(1)
        (held,) = made._buffer.held
        made.stop()
    assert list(dict.fromkeys(one.group for one in samples)) == [0, 2] and held.number == 1
    assert told["rollout/groups_surplus"] == 1 and told["rollout/partial/cut"] == 0
    assert all(one.status is Status.COMPLETED and not one.reward_parts for one in held.samples)


def test_an_engine_that_aborts_by_itself_is_asked_again(checkpoint: Path) -> None:
    class Restless(HttpEngine):
        """Aborts every request once."""

        async def generate(self, request: Any) -> Any:
            body = await request.json()
            if all(
                body["sampling_params"]["sampling_seed"] != b["sampling_params"]["sampling_seed"]
                for b, _ in self.exchanges
            ):
                asyncio.get_running_loop().call_later(0.02, self.cut)
            return await super().generate(request)

        def cut(self) -> None:
            self._aborts += 1

    with serving(Restless(length=lambda body: 8, tick_s=lambda body: 0.01)) as engine:
        made = make_worker(checkpoint, engine.url, num_prompts=1, group_size=2)
        samples, _ = made.generate(1)
        made.stop()
    assert len(engine.exchanges) > 2
    for sample in samples:
        assert [
            (token, logprob) for token, logprob in zip(sample.response_ids, sample.logprobs, strict=True)
        ] == in_chunks(engine)[seed_of(made, sample)]
