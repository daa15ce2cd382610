"""A sample goes on from its own tokens; budgets, counts and answers are checked at each request."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from components.models.glm_omni import tiny as tiny_glm
from components.rollout.prompts import Renderer
from slime_launch.errors import ComponentError
from slime_launch.types import UNSAMPLED, Status
from tests.components.rollout.scripted import Turn, ask, begin
from tests.servers import picture

USER = 7
"""The token of <|user|>, which ends a turn."""


@pytest.fixture(scope="module")
def glm(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    folder = tmp_path_factory.mktemp("glm")
    tiny_glm.write_checkpoint(folder, 1)
    return Renderer(str(folder))


def count_calls(monkeypatch: pytest.MonkeyPatch, processor: Any) -> list[int]:
    """One entry a call of a processor of this class from here on."""
    calls: list[int] = []
    process = processor.__call__

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return process(*args, **kwargs)

    monkeypatch.setattr(processor, "__call__", counted)
    return calls


@pytest.mark.parametrize("images", [0, 1, 3])
def test_every_request_carries_the_whole_sample_so_far(
    glm: Renderer, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun, cut short, resumed, given a tool's answer, gone on with: no token twice, none anew, images every time."""
    processed = count_calls(monkeypatch, type(glm._processor))
    prompt = ask("what?", [picture(number, 56 + 28 * number) for number in range(images)])
    cut: Turn = {"ids": [50, 51], "finish_reason": {"type": "abort"}, "weight_version": "3"}
    engine, sample, script = begin(glm, prompt, [cut, [52, USER], [60, 61, USER]], max_new_tokens=60)
    ended = [asyncio.run(engine.generate(sample)).status for _ in range(2)]
    turn = asyncio.run(engine.continuation(sample, [{"role": "tool", "content": "7"}]))
    sample.add_turn(turn)
    told = turn.ids
    ended.append(asyncio.run(engine.generate(sample, temperature=0.5)).status)

    assert len(processed) == (1 if images else 0), "images go through the processor once, however many requests"
    rendered = glm.render(prompt)
    first, second = [50, 51], [50, 51, 52, USER, *told]
    assert [body["input_ids"] for body in script.bodies] == [
        rendered.request_ids + so_far for so_far in ([], first, second)
    ]
    assert [body.get("image_data", []) for body in script.bodies] == [rendered.image_data] * 3
    assert engine.images_sent == 3 * images
    params = [body["sampling_params"] for body in script.bodies]
    assert [one["max_new_tokens"] for one in params] == [60, 58, 56 - len(told)]
    assert [one["temperature"] for one in params] == [1.0, 1.0, 0.5]
    assert sample.prompt_ids == rendered.ids
    assert sample.response_ids == [*second, 60, 61, USER]
    assert sample.loss_mask == [1] * 4 + [0] * len(told) + [1] * 3
    assert sample.logprobs == [-0.5, -0.75, -0.5, -0.75] + [0.0] * len(told) + [-0.5, -0.75, -1.0]
    assert sample.weight_versions == [3] * 4 + [UNSAMPLED] * len(told) + [3] * 3
    assert ended == [Status.ABORTED, Status.COMPLETED, Status.COMPLETED]
    assert sample.response == glm.decode(sample.response_ids)


def test_a_spent_budget_needs_no_request_and_an_overspent_one_is_an_error(glm: Renderer) -> None:
    engine, sample, script = begin(glm, ask("what?"), [], max_new_tokens=3)
    sample.add_sampled([50, 51], [-1.0, -1.0], 0)
    sample.add_given([52])
    asyncio.run(engine.generate(sample))
    assert sample.status is Status.TRUNCATED
    sample.add_given([53])
    with pytest.raises(ComponentError, match="sample 2 of group 4: its response has 4 tokens and max_new_tokens=3"):
        asyncio.run(engine.generate(sample))
    assert script.bodies == []


WRONG: dict[str, dict[str, Any]] = {
    "counts 99 tokens before what it samples and the trainer [0-9]+": {"prompt_tokens": 99},
    "ended it with {'type': 'strange'}": {"finish_reason": {"type": "strange"}},
    "made 3 tokens and sent 2 logprobs": {"completion_tokens": 3},
    "a logprob that is no number": {"output_token_logprobs": [[-1.0, 5, None], [float("nan"), 6, None]]},
    "weights of version 'default'": {"weight_version": "default"},
    "weight versions .* are not of 2 tokens": {"weight_versions": [{"version": "1", "start": 0, "end": 1}]},
}


@pytest.mark.parametrize("reason", WRONG)
def test_an_answer_that_does_not_fit_is_an_error(glm: Renderer, reason: str) -> None:
    engine, sample, _ = begin(glm, ask("what?", [picture(1)]), [{"ids": [5, 6], **WRONG[reason]}])
    with pytest.raises(ComponentError, match=reason):
        asyncio.run(engine.generate(sample))
    assert sample.response_ids == []


def test_tokens_know_their_weights_when_these_change_in_the_middle(glm: Renderer) -> None:
    spans = [{"version": "3", "start": 0, "end": 2}, {"version": "4", "start": 2, "end": 3}]
    engine, sample, _ = begin(glm, ask("what?"), [{"ids": [5, 6, 7], "weight_version": "4", "weight_versions": spans}])
    asyncio.run(engine.generate(sample))
    assert sample.weight_versions == [3, 3, 4]
    assert sample.logprobs == [-0.5, -0.75, -1.0]


@pytest.mark.parametrize(("told", "images"), [({}, 1), ({"sent": False}, 0)], ids=["put back", "never sent"])
def test_an_abort_before_the_engine_began_leaves_the_sample_as_it_was(
    glm: Renderer, told: dict[str, Any], images: int
) -> None:
    """An engine may have had the images encoded all the same; one that was never asked has not."""
    engine, sample, script = begin(glm, ask("what?", [picture(1)]), [])

    async def nothing(body: Any, read: Any) -> Any:
        meta = {"finish_reason": {"type": "abort"}, "completion_tokens": 0, "output_token_logprobs": []}
        return read({"meta_info": meta | told})

    script.generate = nothing  # type: ignore[method-assign]
    asyncio.run(engine.generate(sample))
    assert (sample.status, sample.response_ids, engine.images_sent) == (Status.ABORTED, [], images)


def test_a_part_begins_with_a_prompt_of_its_own(glm: Renderer) -> None:
    prompt = ask("what?", [picture(1)])
    engine, sample, script = begin(glm, prompt, [[50], [51]])
    text = engine.part(sample, [{"role": "user", "content": "short?"}])
    other = engine.part(sample, [*prompt.messages, {"role": "assistant", "content": "7"}, *ask("sure?").messages])
    for part in (text, other):
        assert (part.group, part.index, part.status) == (4, 2, Status.PENDING)
        asyncio.run(engine.generate(part))
    assert (text.prompt.images, text.media) == ((), {})
    assert other.media["image_grid_thw"].tolist() == [[1, 4, 4]]
    assert "image_data" not in script.bodies[0]
    assert script.bodies[1]["input_ids"] == glm.render(other.prompt).request_ids
    sample.prompt = ask("else?", [picture(2)])
    with pytest.raises(ComponentError, match="its prompt_ids are not those of its prompt"):
        asyncio.run(engine.generate(sample))
