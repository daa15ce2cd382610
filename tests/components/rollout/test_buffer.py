"""Groups that go back and forth, over checkpoints: no prompt lost, none twice, nothing changed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.rollout.buffer import Buffer
from components.rollout.engine import new_sample
from components.rollout.groups import Group
from components.rollout.prompts import Rendered
from slime_launch.errors import ComponentError
from slime_launch.types import Prompt, Sample, Status
from tests.components.rollout.http_engine import Endless


class Pictured(Endless):
    """Every second prompt has an image."""

    def of(self, number: int) -> dict[str, Any]:
        return {"images": (bytes([number % 256, 255, 0]),)} if number % 2 else {}


def render(prompt: Prompt) -> Rendered:
    media = {"pixel_values": np.full((2, 3), len(prompt.label), np.float32)} if prompt.images else {}
    return Rendered(prompt, f"<{prompt.label}>", [1, 2], [1, 2], media)


def make() -> Buffer:
    return Buffer(Pictured(0), render)


def saved_and_loaded(buffer: Buffer) -> Buffer:
    state = buffer.state_dict()
    again = make()
    again.load_state_dict(json.loads(json.dumps(state)))
    assert again.state_dict() == state
    return again


def same(one: Sample, other: Sample) -> bool:
    fields = [name for name in Sample.__slots__ if name != "media"]
    media = one.media.keys() == other.media.keys() and all(
        np.array_equal(array, other.media[name]) and array.dtype == other.media[name].dtype
        for name, array in one.media.items()
    )
    return media and all(getattr(one, name) == getattr(other, name) for name in fields)


TOKENS = st.lists(
    st.tuples(st.integers(0, 99), st.floats(-30, 0), st.integers(0, 1), st.integers(-1, 5)), max_size=4
)  # fmt: skip
STATUS = st.sampled_from([Status.COMPLETED, Status.TRUNCATED, Status.ABORTED])
METADATA = st.dictionaries(st.text(max_size=3), st.none() | st.integers() | st.text(max_size=3), max_size=2)


@st.composite
def begun(draw: st.DrawFn, group: Group) -> Group:
    """The group with some rollouts, some of several samples, one of them with a prompt and media of its own."""
    for index in draw(st.sets(st.integers(0, 3))):
        samples = []
        for part in range(draw(st.integers(1, 2))):
            sample = new_sample(group.rendered, group.number, index)
            sample.part, sample.status, sample.metadata = part, draw(STATUS), draw(METADATA)
            rows = draw(TOKENS)
            sample.response_ids, sample.logprobs = [row[0] for row in rows], [row[1] for row in rows]
            sample.loss_mask, sample.weight_versions = [row[2] for row in rows], [row[3] for row in rows]
            if part:
                sample.prompt = Prompt([{"role": "user", "content": "again"}], "x", images=(b"\x00",))
                sample.media = {"grid": np.arange(6, dtype=np.int64).reshape(2, 3)}
            samples.append(sample)
        group.rollouts[index] = samples
    return group


@given(st.data())
def test_no_prompt_is_lost_or_comes_twice(data: st.DataObject) -> None:
    buffer, used, out, numbers = make(), [], [], {}
    for _ in range(data.draw(st.integers(1, 6))):
        waiting = [group.number for group in buffer.held]
        taken = buffer.take(data.draw(st.integers(1, 5)))
        assert [group.number for group in taken][: len(waiting)] == waiting[: len(taken)]  # those that came back first
        for group in taken:
            assert numbers.setdefault(group.number, group.rendered.prompt.label) == group.rendered.prompt.label
        out = [data.draw(begun(group)) for group in taken if data.draw(st.booleans())]
        used += [group.number for group in taken if group not in out]
        buffer.give_back(data.draw(st.permutations(out)))
        before = buffer.held
        if data.draw(st.booleans()):
            buffer = saved_and_loaded(buffer)
            for old, new in zip(before, buffer.held, strict=True):
                assert old.number == new.number and old.rendered.prompt == new.rendered.prompt
                assert all(map(same, old.samples, new.samples)) and len(old.samples) == len(new.samples)
    drawn = buffer.take(len(buffer.held) + 1)[-1].number
    assert len(used) == len(set(used)) and not set(used) & {group.number for group in buffer.held}
    assert sorted([*used, *(group.number for group in before)]) == list(range(drawn))
    assert sorted(numbers.values(), key=int) == [str(number) for number in range(drawn)]


def test_a_group_that_is_no_json_is_named() -> None:
    buffer = make()
    (group,) = buffer.take(1)
    sample = new_sample(group.rendered, 0, 0)
    sample.metadata = {"socket": object()}
    group.rollouts[0] = [sample]
    buffer.give_back([group])
    with pytest.raises(ComponentError, match=r"group 0 \(source default\) cannot be saved.*plain JSON"):
        buffer.state_dict()


def test_a_state_of_other_code_is_refused() -> None:
    with pytest.raises(ComponentError, match=r"\['at'\]; it is of other code"):
        make().load_state_dict({"at": 3})


def test_a_source_that_gives_too_little_is_refused() -> None:
    class Short(Endless):
        def take(self, num_prompts: int) -> list[Prompt]:
            return super().take(num_prompts)[1:]

    with pytest.raises(ComponentError, match="2 prompts came where 3 were asked for"):
        Buffer(Short(0), render).take(3)
