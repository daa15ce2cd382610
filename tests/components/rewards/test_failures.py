"""What becomes of a reward that raises, hangs or answers nonsense: counted, and never a silent zero."""

import asyncio
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.rewards.mix import Mix
from slime_launch.errors import ComponentError
from tests.components.rewards.scripted import FAILURES, Batch, Lifelong, Single, Stubborn, Whole, node, scored

DEADLINE_S = 0.05


def run(mix, samples):
    return asyncio.run(mix.score(samples))


@pytest.mark.parametrize("kind", [Batch, Single])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_run_stops_by_default_and_names_part_and_sample(kind, failure):
    mix = Mix({"part": node(kind, deadline_s=DEADLINE_S)})
    samples = [scored(0, 0, a=1.0), scored(0, 1, a=failure), scored(1, 0, a=0.5)]
    with pytest.raises(ComponentError, match=r"reward\.parts\.part: .*(sample 1 of group 0|score nan)"):
        run(mix, samples)
    assert all(sample.reward_parts == {} for sample in samples)


@pytest.mark.parametrize("kind", [Batch, Single])
@pytest.mark.parametrize("failure", FAILURES)
def test_only_what_fails_gets_the_fallback(kind, failure):
    mix = Mix({"part": node(kind, weight=2.0, on_error={"fallback": -0.5}, deadline_s=DEADLINE_S)})
    samples = [scored(0, 0, a=1.0), scored(0, 1, a=failure), scored(1, 0, a=0.5)]
    assert run(mix, samples) == [2.0, -1.0, 1.0]
    counts = mix.counts()
    assert counts["rollout/reward_fallbacks/part"] == 1.0
    assert counts["rollout/reward_errors/part"] == {Batch: 2.0, Single: 1.0}[kind]  # the batch, then the sample
    assert mix.counts() == {"rollout/reward_errors/part": 0.0}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_dropped_sample_has_no_reward_and_leaves_its_group(failure):
    parts = {
        "part": node(Batch, on_error="drop", deadline_s=DEADLINE_S),
        "z": node(Batch, key="b", normalise="group"),
    }
    samples = [scored(0, 0, a=1.0, b=1.0), scored(0, 1, a=failure, b=100.0), scored(0, 2, a=1.0, b=3.0)]
    rewards = run(mix := Mix(parts), samples)
    assert math.isnan(rewards[1]) and math.isnan(samples[1].reward)
    assert [sample.dropped for sample in samples] == ["", "reward part failed", ""]
    # the z-scores are those of 1 and 3 alone
    assert [rewards[0], rewards[2]] == pytest.approx([1 - 1 / math.sqrt(2), 1 + 1 / math.sqrt(2)], abs=1e-5)
    assert mix.counts()["rollout/reward_dropped/part"] == 1.0
    assert math.isnan(run(mix, samples)[1])  # and stays dropped
    assert mix.counts()["rollout/reward_errors/part"] == 0.0


@pytest.mark.parametrize("kind", [Batch, Single, Whole])
def test_a_retry_saves_what_comes_right(kind):
    mix = Mix({"part": node(kind, on_error={"retry": 2}, deadline_s=DEADLINE_S)})
    samples = [scored(0, 0, a=0.0), scored(0, 1, a=1.0, a_first=["raise", "hang"])]
    assert run(mix, samples) == [0.0, 1.0]
    assert mix.counts() == {"rollout/reward_errors/part": 2.0}


def test_a_batch_that_fails_only_as_a_batch():
    samples = [scored(0, 0, a=0.0), scored(0, 1, a=1.0, a_first=["raise"])]
    with pytest.raises(ComponentError, match=r"part: batch of 2 samples: RuntimeError: no score today"):
        run(Mix({"part": node(Batch)}), samples)
    samples[1].metadata["a_first"] = ["raise"]
    assert run(Mix({"part": node(Batch, on_error="drop")}), samples) == [0.0, 1.0]


def test_a_group_fails_as_one():
    mix = Mix({"part": node(Whole, on_error="drop")})
    rewards = run(mix, [scored(0, 0, a=1.0), scored(1, 0, a=1.0), scored(1, 1, a="raise")])
    assert rewards[0] == 0.0 and all(map(math.isnan, rewards[1:]))
    assert mix.counts() == {"rollout/reward_errors/part": 1.0, "rollout/reward_dropped/part": 2.0}


def test_a_part_that_cannot_be_cancelled_is_left_behind(monkeypatch):
    monkeypatch.setattr("components.rewards.part.GRACE_S", 0.05)
    mix = Mix({"part": {"_target_": f"{Stubborn.__module__}.Stubborn", "weight": 1, "on_error": "drop",
                        "deadline_s": DEADLINE_S}})  # fmt: skip

    async def go():
        rewards = await mix.score([scored(a=1.0)])
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.get_coro().close()  # what asyncio.run would wait for
        return rewards

    loop = asyncio.new_event_loop()
    assert math.isnan(loop.run_until_complete(go())[0])
    loop.close()


def test_singles_are_asked_within_the_bound():
    Single.most = 0
    run(Mix({"part": node(Single)}, concurrency=3), [scored(group, 0, a=1.0) for group in range(20)])
    assert Single.most == 3


def test_parts_are_told_of_steps_models_and_the_end():
    mix = Mix({"part": {"_target_": f"{Lifelong.__module__}.Lifelong", "weight": 1.0}})
    Lifelong.said.clear()
    mix.begin_step(7)
    mix.connect({})
    asyncio.run(mix.close())
    assert Lifelong.said == [7, {}, "closed"]


def test_a_part_that_cannot_be_closed_keeps_none_open():
    kinds = {"a": "Lifelong", "stuck": "Stuck"}
    mix = Mix({name: {"_target_": f"{Lifelong.__module__}.{kind}", "weight": 1.0} for name, kind in kinds.items()})
    Lifelong.said.clear()
    with pytest.raises(OSError, match="stuck"):
        asyncio.run(mix.close())
    assert Lifelong.said == ["closed"]


POLICIES = st.sampled_from([{"fallback": -7.0}, {"then": "drop"}])
VALUES = st.one_of(st.floats(1, 2), st.sampled_from(["raise", "nan"]))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), VALUES, VALUES), max_size=12),
    st.sampled_from([Batch, Single]), st.sampled_from([Batch, Single]), POLICIES, POLICIES, st.integers(0, 2),
)  # fmt: skip
def test_every_sample_ends_scored_with_the_fallback_or_dropped(rows, kind_a, kind_b, policy_a, policy_b, retry):
    """With parts that fail at random: counts add up, and no score is made up."""
    mix = Mix({
        "a": node(kind_a, "a", on_error=policy_a | {"retry": retry}),
        "b": node(kind_b, "b", on_error=policy_b),
    })  # fmt: skip
    samples = [scored(group, index, a=a, b=b) for index, (group, a, b) in enumerate(rows)]
    rewards = run(mix, samples)
    counts = mix.counts()
    failed = {"a": [isinstance(a, str) for _, a, _ in rows], "b": [isinstance(b, str) for _, _, b in rows]}
    for name, policy in (("a", policy_a), ("b", policy_b)):
        kind = "fallbacks" if "fallback" in policy else "dropped"
        assert counts.get(f"rollout/reward_{kind}/{name}", 0.0) == sum(failed[name])
        assert (counts[f"rollout/reward_errors/{name}"] >= sum(failed[name])) and len(rewards) == len(rows)
    for row, sample in enumerate(samples):
        lost = any(failed[name][row] and "then" in policy for name, policy in (("a", policy_a), ("b", policy_b)))
        assert bool(sample.dropped) == lost == math.isnan(rewards[row])
        if not lost:
            values = [-7.0 if isinstance(value, str) else value for value in rows[row][1:]]
            assert list(sample.reward_parts.values()) == values
            assert rewards[row] == pytest.approx(sum(values))
