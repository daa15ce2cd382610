"""Each part on its own."""

import asyncio

import pytest

from components.data.reasoning_gym import ReasoningGym
from components.rewards.exact import Exact
from components.rewards.format import Format
from components.rewards.reasoning_gym import ReasoningGymScore
from slime_launch.errors import ComponentError
from slime_launch.types import Status
from tests.components.rewards.samples import sample


def score(reward, *samples):
    return asyncio.run(reward.score(samples))


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("[7]", 1.0),
        (" [7]\n", 1.0),
        ("[ 7 ]", 1.0),
        ("7", 0.0),
        ("[8]", 0.0),
        ("[7][7]", 0.0),
        ("x[7]", 0.0),
        ("", 0.0),
    ],
)
def test_exact_takes_the_whole_response(response, expected):
    assert score(Exact(), sample(response)) == [expected]


def test_format_wants_a_whole_answer_and_an_end():
    samples = [sample("[8]"), sample("8"), sample("[8]", status=Status.TRUNCATED), sample("[]")]
    assert score(Format(), *samples) == [1.0, 0.0, 0.0, 0.0]


def test_pattern_is_a_choice():
    assert score(Exact(r"answer: (\d)"), sample("answer: 7"), sample("[7]")) == [1.0, 0.0]


@pytest.mark.parametrize(("pattern", "says"), [("[", "not a regular expression"), ("7", "exactly one group")])
@pytest.mark.parametrize("part", [Exact, Format, ReasoningGymScore])
def test_bad_pattern_is_refused(part, pattern, says):
    with pytest.raises(ComponentError, match=says):
        part(pattern)


def test_reasoning_gym_scores_with_the_tasks_own_scorer():
    source = ReasoningGym("spell_backward", 1, 1, 0, {"min_word_len": 4, "max_word_len": 4})
    prompt = source.take(1)[0]
    wrong_last = prompt.label[:-1] + ("a" if prompt.label[-1] != "a" else "b")
    samples = [
        sample(text, label=prompt.label, metadata=prompt.metadata)
        for text in (prompt.completion, f"[{wrong_last}]", prompt.label)
    ]
    assert score(ReasoningGymScore(), *samples) == [1.0, 0.75, 0.0]


def test_reasoning_gym_refuses_other_sources():
    with pytest.raises(ComponentError, match=r"source digits .*Exact"):
        score(ReasoningGymScore(), sample("[7]"))
