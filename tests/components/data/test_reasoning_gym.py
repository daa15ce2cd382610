"""Prompts of the real package: different questions, held-out ones apart, errors that say how to mend."""

import pytest

from components.data.reasoning_gym import ReasoningGym
from slime_launch.errors import ComponentError
from slime_launch.interfaces import DataSource

WORDS = {"task": "spell_backward", "task_args": {"min_word_len": 3, "max_word_len": 5}, "size": 300, "eval_size": 50}


def texts(prompts):
    return [prompt.messages[0]["content"] for prompt in prompts]


def test_questions_are_different_and_held_out_ones_apart():
    source = ReasoningGym(**WORDS, seed=1)
    assert isinstance(source, DataSource)
    train, held_out = texts(source.take(300)), texts(source.eval_sets()["spell_backward"])
    assert len(set(train)) == 300 and len(set(held_out)) == 50
    assert not set(train) & set(held_out)


def test_held_out_is_the_same_for_every_seed_and_training_is_not():
    one, two = ReasoningGym(**WORDS, seed=1), ReasoningGym(**WORDS, seed=2)
    assert texts(one.eval_sets()["spell_backward"]) == texts(two.eval_sets()["spell_backward"])
    assert texts(one.take(300)) == texts(ReasoningGym(**WORDS, seed=1).take(300))
    assert set(texts(one.take(300))) != set(texts(two.take(300)))


def test_question_may_be_written_from_the_metadata():
    prompt = ReasoningGym(**WORDS, seed=0, question="{word} backward").take(1)[0]
    assert prompt.messages[0]["content"] == f"{prompt.label[::-1]} backward"
    assert prompt.completion == f"[{prompt.label}]"


def test_goes_round():
    source = ReasoningGym(**{**WORDS, "size": 5}, seed=0)
    assert sorted(texts(source.take(5))) == sorted(texts(source.take(5)))


def test_goes_on_where_it_was_left():
    source = ReasoningGym(**{**WORDS, "size": 5}, seed=0)
    source.take(7)
    state, rest = source.state_dict(), texts(source.take(8))
    other = ReasoningGym(**{**WORDS, "size": 5}, seed=0)
    other.load_state_dict(state)
    assert texts(other.take(8)) == rest


@pytest.mark.parametrize("change", [{"task": "basic_arithmetic", "task_args": {}}, {"question": "{word} backward"}])
def test_a_position_of_other_prompts_is_refused(change):
    state = ReasoningGym(**WORDS, seed=0).state_dict()
    with pytest.raises(ComponentError, match="the saved position is of other prompts"):
        ReasoningGym(**{**WORDS, **change}, seed=0).load_state_dict(state)


def test_references_take_turns_as_often_as_asked():
    prompts = ReasoningGym(**WORDS, question="{word}", turns=["<look>{word}</look>"], turns_share=0.5, seed=0).take(
        WORDS["size"]
    )
    counts = [len(prompt.turns) for prompt in prompts]
    assert 0.3 < sum(counts) / len(counts) < 0.7
    assert all(prompt.turns in ((), (f"<look>{prompt.messages[0]['content']}</look>",)) for prompt in prompts)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"task": "spel_backward"}, "spel_backward.*not registered"),
        ({"task_args": {"min_len": 3}}, "unexpected keyword"),
        ({"task_args": {"min_word_len": 0}}, "must be positive"),
        ({"question": "{sentence}"}, "no field 'sentence'; it has question, .*word"),
        ({"question": "Reverse it"}, "names no field"),
        ({"question": "{word"}, "not a format string"),
        ({"turns": ["<look>{sentence}</look>"]}, "data.turns=<look>.*no field 'sentence'"),
        ({"turns_share": 1.5}, "data.turns_share=1.5: must be from 0 to 1"),
        ({"task": "chain_sum", "task_args": {"max_terms": 2, "max_digits": 1}}, "only .* different questions"),
    ],
)
def test_errors_name_the_key(change, says):
    with pytest.raises(ComponentError, match=says):
        ReasoningGym(**{**WORDS, **change}, seed=0)
