"""The digit prompts: real images, a fixed balanced held-out split, an order fixed by the seed."""

import io
from collections import Counter

import pytest
from PIL import Image

from components.data.digits import Digits
from slime_launch.errors import ComponentError
from slime_launch.interfaces import DataSource

NUM_TRAIN = 1597


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits(seed=1)


def rows(prompts):
    return [prompt.metadata["row"] for prompt in prompts]


def test_is_a_data_source_with_real_images(digits):
    assert isinstance(digits, DataSource)
    prompt = digits.take(1)[0]
    image = Image.open(io.BytesIO(prompt.images[0]))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (56, 56))
    assert prompt.completion == f"[{prompt.label}]"
    assert [part["type"] for part in prompt.messages[0]["content"]] == ["image", "text"]


def test_held_out_is_balanced_fixed_and_never_trained_on(digits):
    held_out = digits.eval_sets()["digits"]
    assert Counter(prompt.label for prompt in held_out) == {str(digit): 20 for digit in range(10)}
    other = Digits(seed=2)
    assert rows(other.eval_sets()["digits"]) == rows(held_out)
    assert not set(rows(other.take(2 * NUM_TRAIN))) & set(rows(held_out))


def test_order_follows_the_seed_and_goes_round():
    first, again, other = Digits(seed=3), Digits(seed=3), Digits(seed=4)
    taken = rows(first.take(10) + first.take(NUM_TRAIN - 10))
    assert taken == rows(again.take(NUM_TRAIN)) != rows(other.take(NUM_TRAIN))
    assert len(set(taken)) == NUM_TRAIN
    assert set(rows(first.take(NUM_TRAIN))) == set(taken)


def test_goes_on_where_it_was_left():
    source = Digits(seed=3)
    source.take(17)
    state, rest = source.state_dict(), rows(source.take(NUM_TRAIN))
    other = Digits(seed=3)
    other.load_state_dict(state)
    assert rows(other.take(NUM_TRAIN)) == rest


@pytest.mark.parametrize("eval_size", [0, 15, 2000])
def test_refuses_a_split_that_cannot_be_balanced(eval_size):
    with pytest.raises(ComponentError, match="multiple of 10"):
        Digits(seed=0, eval_size=eval_size)
