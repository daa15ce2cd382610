"""Mathematical answers: what is equal, and processes that hang, break off or die."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from components.rewards.math_answer import MathAnswer
from components.rewards.mix import Mix
from slime_launch.errors import ComponentError, DeadlineError
from tests.components.rewards.samples import sample

ENDLESS = r"\boxed{9^{9^{9^{9}}}}"


def workers():
    """Pids of this process's workers."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line, parent = (entry / "cmdline").read_bytes(), (entry / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if b"math_worker.py" in line and int(parent) == os.getpid():
            found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def maths():
    made = MathAnswer(workers=1, time_s=20.0)
    yield made
    asyncio.run(made.close())


@pytest.mark.parametrize(
    ("label", "response", "expected"),
    [
        ("42", r"so it is \boxed{42}.", 1.0),
        ("42", "I get 42", 1.0),
        ("42", "no idea", 0.0),
        (r"\frac{1}{2}", r"\boxed{0.5}", 1.0),
        ("1/2", r"$\frac{2}{4}$", 1.0),
        ("x^2 + 1", "$1 + x^2$", 1.0),
        ("x^2 + 1", "$1 - x^2$", 0.0),
        ("(1,2)", "$(1, 2)$", 1.0),
        (r"\{1,2\}", r"$\{2,1\}$", 1.0),
        ("3%", "0.03", 1.0),
        ("7", r"\boxed{\int_0^1 x", 0.0),
    ],
)
def test_equal_as_mathematics(maths, label, response, expected):
    assert asyncio.run(maths.score_one(sample(response, label))) == expected


def test_a_pattern_says_where_the_answer_stands():
    async def go():
        maths = MathAnswer(pattern=r"\[([^\[\]]+)\]", workers=1, time_s=20.0)
        scores = [await maths.score_one(sample(text, "1/2")) for text in ("[0.5]", "0.5", "[1]")]
        await maths.close()
        return scores

    assert asyncio.run(go()) == [1.0, 0.0, 0.0]
    for bad in ({"pattern": "("}, {"time_s": 0.0}, {"workers": 0}, {"memory_mb": 1}):
        with pytest.raises(ComponentError):
            MathAnswer(**bad)


def test_it_works_in_a_process_of_many_descriptors():
    held = [os.open("/dev/null", os.O_RDONLY)]
    while held[-1] < 1100:
        held.append(os.dup(held[0]))
    try:
        many = MathAnswer(workers=1, time_s=20.0)
        assert asyncio.run(many.score_one(sample(r"\boxed{42}", "42"))) == 1.0
        asyncio.run(many.close())
    finally:
        for descriptor in held:
            os.close(descriptor)


def test_a_label_that_is_no_mathematics_is_an_error(maths):
    with pytest.raises(ComponentError, match="label '' is no mathematics"):
        asyncio.run(maths.score_one(sample("7", "")))


def test_a_dead_process_is_an_error_and_the_next_answer_has_a_new_one(maths):
    asyncio.run(maths.score_one(sample("7", "7")))
    (pid,) = workers()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ComponentError, match=r"died|is gone"):
        asyncio.run(maths.score_one(sample("7", "7")))
    assert asyncio.run(maths.score_one(sample("7", "7"))) == 1.0
    assert workers() != [pid]


def test_a_process_that_hangs_is_killed_and_made_anew():
    """Through the mixer: the answers beside it are right, the failure is counted, no process is left."""
    before = set(workers())
    node = {"_target_": "components.rewards.math_answer.MathAnswer", "time_s": 2.0, "weight": 1.0}

    async def go():
        mix = Mix({"math": {**node, "on_error": {"fallback": -1.0}}})
        samples = [sample(text, "7", index) for index, text in enumerate([ENDLESS, "7", "8", "7", "7"])]
        rewards = await mix.score(samples)
        hung = set(workers()) - before
        await mix.close()
        return rewards, mix.counts(), hung

    rewards, counts, alive = asyncio.run(go())
    assert rewards == [-1.0, 1.0, 0.0, 1.0, 1.0]
    assert counts == {"rollout/reward_errors/math": 1.0, "rollout/reward_fallbacks/math": 1.0}
    assert len(alive) <= 2 and set(workers()) == before


def test_the_deadline_is_named(maths):
    short = MathAnswer(workers=1, time_s=0.5)
    with pytest.raises(DeadlineError, match=r"with '7' took more than 0\.5 s"):
        asyncio.run(short.score_one(sample(ENDLESS, "7")))
    asyncio.run(short.close())
