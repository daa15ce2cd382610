"""Each part on its own."""

import asyncio

import pytest

from components.data.reasoning_gym import ReasoningGym
from components.rewards.choice import Choice
from components.rewards.distinct import Distinct
from components.rewards.exact import Exact
from components.rewards.f1 import F1
from components.rewards.format import Format
from components.rewards.length import GroupLength, Overlong
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
@pytest.mark.parametrize("part", [Exact, Format, ReasoningGymScore, Distinct, F1])
def test_bad_pattern_is_refused(part, pattern, says):
    with pytest.raises(ComponentError, match=says):
        part(pattern)


@pytest.fixture
def gym():
    made = ReasoningGymScore(time_s=60.0, workers=1)
    yield made
    asyncio.run(made.close())


def test_reasoning_gym_scores_with_the_tasks_own_scorer(gym):
    source = ReasoningGym("spell_backward", 1, 1, 0, {"min_word_len": 4, "max_word_len": 4})
    prompt = source.take(1)[0]
    wrong_last = prompt.label[:-1] + ("a" if prompt.label[-1] != "a" else "b")
    samples = [
        sample(text, label=prompt.label, metadata=prompt.metadata)
        for text in (prompt.completion, f"[{wrong_last}]", prompt.label)
    ]
    assert [asyncio.run(gym.score_one(one)) for one in samples] == [1.0, 0.75, 0.0]


def test_reasoning_gym_refuses_other_sources():
    with pytest.raises(ComponentError, match=r"source digits .*Exact"):
        asyncio.run(ReasoningGymScore().score_one(sample("[7]")))


def of_length(tokens, response="[7]", index=0):
    one = sample(response, index=index)
    one.response_ids = [1] * tokens
    return one


def test_exact_may_be_loose():
    texts = ["[The  Eiffel Tower!]", "[eiffel tower]", "[eiffel]", "the eiffel tower"]
    assert score(Exact(loose=True), *(sample(text, "Eiffel Tower") for text in texts)) == [1.0, 1.0, 0.0, 0.0]
    assert score(Exact(), sample(texts[0], "Eiffel Tower")) == [0.0]


@pytest.mark.parametrize(
    ("response", "label", "more", "expected"),
    [
        ("The cat sat.", "a cat sat", [], 1.0),
        ("cat", "the cat sat down", [], 2 * 1 * (1 / 3) / (1 + 1 / 3)),
        ("cat cat cat", "cat dog", [], 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2)),
        ("dog", "cat", ["a dog", "bird"], 1.0),
        ("dog", "cat", [], 0.0),
        ("", "cat", [], 0.0),
        ("the", "", [], 1.0),
    ],
)
def test_f1_counts_shared_words(response, label, more, expected):
    assert score(F1(), sample(response, label, metadata={"answers": more})) == [pytest.approx(expected)]


def test_f1_within_a_pattern_and_with_bad_references():
    assert score(F1(r"\[(.+)\]"), sample("[a cat]", "cat"), sample("a cat", "cat")) == [1.0, 0.0]
    with pytest.raises(ComponentError, match=r"source digits: metadata\.answers='cat' is no list"):
        score(F1(), sample("cat", metadata={"answers": "cat"}))


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("C", "C"), ("(c).", "C"), ("**B**", "B"), ("[A]", "A"), ("$D$", "D"),
        ("The answer is C", "C"), ("the answer is (B), since A is wrong", "B"), ("Answer: **D**", "D"),
        ("**Answer:** A", "A"), ("The answer is A. No: the answer is B.", "B"),
        (r"The answer is A, so \boxed{C}", "C"), (r"\boxed{\text{B}}", "B"), (r"\boxed{(D)}", "D"),
        ("A cat sat", None), ("the answer is a's", None), ("The answer is unclear", None), ("E", None), ("", None),
        ("The answer is a mystery to me, I cannot say.", None), ("Answer: B. But my answer is a guess.", "B"),
        ("the answer is a.", "A"), ("The answer is (a), not b", "A"), ("the answer is **a**\nsince", "A"),
        ("answer: a  \nsince", "A"), ("the answer is b since a is wrong", "B"), ("The answer is A since", "A"),
        ("The answer is Cat", None), (r"\boxed{Dog}", None), ("A or B", None),
    ],
)  # fmt: skip
def test_choice_takes_the_letter_that_is_settled_on(response, letter):
    assert score(Choice(), *(sample(response, each) for each in "ABCD")) == [float(each == letter) for each in "ABCD"]


@pytest.mark.parametrize("start", ["answer: ", r"\boxed{"])
def test_choice_reads_a_run_of_spaces_once(start):
    assert score(Choice(), sample(start + " " * 200_000, "A")) == [0.0]  # hours, if each split of it were tried


def test_choice_by_pattern_and_its_refusals():
    assert score(Choice("XY", r"<(.)>"), sample("<x>", "X"), sample("x", "X"), sample("<y>", "x")) == [1.0, 0.0, 0.0]
    with pytest.raises(ComponentError, match=r"source digits: label '7' is none of letters=ABCD"):
        score(Choice(), sample("A", "7"))
    for letters in ("A", "AA", "A1", "", "aA"):
        with pytest.raises(ComponentError, match="letters="):
            Choice(letters)


def test_overlong_as_in_the_paper():
    """20,480 tokens of which 4,096 are the buffer."""
    lengths = [0, 16384, 16384 + 1024, 20480 - 1, 20480, 30000]
    expected = [0.0, 0.0, -0.25, -4095 / 4096, -1.0, -1.0]
    assert score(Overlong(20480), *map(of_length, lengths)) == pytest.approx(expected)
    for bad in ({"max_tokens": 0}, {"max_tokens": 5, "buffer": 0.0}, {"max_tokens": 5, "buffer": 1.5}):
        with pytest.raises(ComponentError, match="need max_tokens above 0"):
            Overlong(**bad)


def test_rewards_that_compare_a_group():
    def group(reward, *samples):
        return asyncio.run(reward.score_group(samples))

    assert group(GroupLength(), *(of_length(n, index=n) for n in (4, 2, 6))) == [0.0, 0.5, -0.5]
    assert group(GroupLength(), of_length(4), of_length(4, index=1)) == [0.0, 0.0]
    answers = [of_length(1, text, index) for index, text in enumerate(["[7]", "[8]", " [7]", "none"])]
    assert group(Distinct(), *answers) == [2 / 3, 1.0, 2 / 3, 1.0]
    assert group(Distinct(), answers[0]) == [1.0]


def test_a_rollout_of_several_samples_is_one_member_of_its_group():
    """By its last sample; all of its samples get its score."""

    def group(reward, *samples):
        return asyncio.run(reward.score_group(samples))

    parts = [of_length(1, "[7]", 0), of_length(9, "none", 0), of_length(4, "[7]", 0)]
    assert group(Distinct(), *parts, of_length(2, "[8]", 1)) == [1.0] * 4
    assert group(Distinct(), *parts, of_length(2, "[7]", 1)) == [0.0] * 4
    assert group(Distinct(), *parts) == [1.0] * 3
    assert group(GroupLength(), *parts, of_length(2, "[8]", 1)) == [-0.5, -0.5, -0.5, 0.5]
