"""Mixtures: shares kept over any stretch, each source whole in its rounds, exact resume, names that rewards go by."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.data.mixture import Mixture
from slime_launch.errors import ComponentError
from slime_launch.interfaces import DataSource

FILES = "components.data.files.Files"
counts = st.lists(st.integers(0, 9), max_size=5)
weights = st.lists(st.floats(0.01, 10), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("mixture")
    for number, size in enumerate((3, 5, 7, 11)):
        rows = (json.dumps({"prompt": f"{number}/{n}", "label": n}) + "\n" for n in range(size))
        (made / f"{number}.jsonl").write_text("".join(rows))
    return made


def mixture(folder, weights, seed=1, **changes):
    nodes = {
        f"s{number}": {"_target_": FILES, "path": f"{folder}/{number}.jsonl[1:]", "weight": weight,
                       "eval_paths": {f"e{held}": f"{folder}/{number}.jsonl[0:1]" for held in range(number + 1)},
                       "shuffle": bool(number % 2)} | changes
        for number, weight in enumerate(weights)
    }  # fmt: skip
    return Mixture(nodes, seed)


def texts(prompts):
    return [prompt.messages[0]["content"] for prompt in prompts]


@given(weights, st.integers(0, 99), counts, counts)
@settings(max_examples=40, deadline=None)
def test_resume_anywhere_gives_the_same_remaining_order(folder, shares, seed, before, after):
    straight, stopped, resumed = (mixture(folder, shares, seed) for _ in range(3))
    for count in before:
        straight.take(count)
        stopped.take(count)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    rest = [texts(straight.take(count)) for count in after]
    assert [texts(resumed.take(count)) for count in after] == rest
    assert resumed.state_dict() == straight.state_dict()


@given(weights, st.integers(0, 99), st.integers(0, 500), st.integers(1, 2000))
@settings(max_examples=40, deadline=None)
def test_shares_are_kept_over_any_stretch(folder, shares, seed, start, length):
    source = mixture(folder, shares, seed)
    drawn = Counter(source.name_of(start + draw) for draw in range(length))
    for number, weight in enumerate(shares):
        assert abs(drawn[f"s{number}"] - length * weight / sum(shares)) < 5
    other = mixture(folder, shares, seed)
    cut = texts(source.take(length // 10)) + texts(source.take(9))
    assert cut == texts(other.take(length // 10 + 9))


def test_each_source_goes_round_by_itself(folder):
    source = mixture(folder, [1, 1, 2])
    assert isinstance(source, DataSource)
    taken = source.take(200)
    for number, size in enumerate((2, 4, 6)):
        own = [prompt for prompt in taken if prompt.source == f"s{number}"]
        assert len(own) > 40 and set(map(len, map(texts, [own]))) == {len(own)}
        for start in range(0, len(own), size):
            assert len(set(texts(own[start : start + size]))) == len(own[start : start + size])
        assert source.metrics()[f"data/s{number}/epoch"] == (len(own) - 1) // size


def test_a_mixture_in_a_mixture_tells_of_each_of_its_sources(folder):
    def files(number):
        return {"_target_": FILES, "path": f"{folder}/{number}.jsonl", "weight": 1}

    inner = {"_target_": "components.data.mixture.Mixture", "weight": 1}
    two = {"a": inner | {"sources": {"x": files(0), "y": files(1)}}, "b": inner | {"sources": {"x": files(2)}}}
    made = Mixture(two | {"c": files(3)}, 1)
    made.take(4)
    epochs = {"data/a/x/epoch", "data/a/y/epoch", "data/b/x/epoch", "data/c/epoch"}
    assert epochs <= set(made.metrics())


def test_sets_and_prompts_bear_the_sources_names(folder):
    sets = mixture(folder, [1, 1]).eval_sets()
    sources = {name: {prompt.source for prompt in held} for name, held in sets.items()}
    assert sources == {"s0": {"s0"}, "s1_e0": {"s1"}, "s1_e1": {"s1"}}
    held = {name: f"{folder}/2.jsonl" for name in ("e0", "e1")}
    node = {"_target_": FILES, "path": f"{folder}/3.jsonl", "weight": 1}
    two = Mixture({"s1": node | {"eval_paths": held}, "s1_e0": node | {"eval_paths": {"x": f"{folder}/1.jsonl"}}}, 1)
    with pytest.raises(ComponentError, match=r"data\.sources\.s1_e0: there are two held-out sets called s1_e0"):
        two.eval_sets()


def test_several_tasks_mix_with_files(folder):
    task = {"_target_": "components.data.reasoning_gym.ReasoningGym", "size": 20, "eval_size": 3, "weight": 1}
    rows = {"_target_": FILES, "path": f"{folder}/3.jsonl", "weight": 2}
    source = Mixture({"words": task | {"task": "spell_backward"}, "sums": task | {"task": "chain_sum"}, "f": rows}, 1)
    assert Counter(prompt.source for prompt in source.take(40)) == {"words": 10, "sums": 10, "f": 20}
    held_out = {name: len(held) for name, held in source.eval_sets().items()}
    assert held_out == {"words": 3, "sums": 3}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weight": 0}, r"data\.sources\.s0\.weight=0: must be a number above zero"),
        ({"weight": True}, r"weight=True"),
        ({"path": "none.jsonl"}, r"data\.sources\.s0: none\.jsonl: no such file"),
        ({"pth": "x"}, r"data\.sources\.s0: .*unexpected keyword argument 'pth'"),
        ({"_target_": "components.data.order.Shuffled"}, r"data\.sources\.s0"),
    ],
)
def test_what_is_wrong_names_its_source(folder, change, says):
    with pytest.raises(ComponentError, match=says):
        mixture(folder, [1], **change)


@pytest.mark.parametrize(("shares", "seed"), [([1, 2], 1), ([1, 1], 2), ([1, 1, 1], 1)])
def test_a_position_of_another_mixture_is_refused(folder, shares, seed):
    with pytest.raises(ComponentError, match=r"the saved position is of (seed|shares)"):
        mixture(folder, shares, seed).load_state_dict(mixture(folder, [1, 1], 1).state_dict())
