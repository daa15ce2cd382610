"""Conversations with an environment: what is said, what trains, how they end, how they go on after an abort."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.models.qwen3 import tiny
from components.rollout.practice import Conversations
from components.rollout.prompts import Renderer
from components.rollout.tools import ToolLoop, count_turns
from slime_launch.errors import ComponentError
from slime_launch.types import UNSAMPLED, Sample, Status
from tests.components.rollout.scripted import Script, Turn, ask, begin

CALCULATOR = {"_target_": "components.rollout.environments.calculator.Calculator"}


class Countdown:
    """Says one number less each time; keeps it with the sample."""

    async def step(self, sample: Sample, text: str) -> Sequence[Mapping[str, Any]]:
        if text == "fail":
            raise KeyError("broken")
        left = sample.metadata["left"] = sample.metadata.get("left", 3) - 1
        return [{"role": "user", "content": f"{left}"}] if left else []


class Mute:
    """No environment."""


@pytest.fixture(autouse=True)
def ours_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIME_LAUNCH_ALLOW_TARGETS", "tests")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp("qwen")
    tiny.write_checkpoint(made, 1)
    return str(made)


@pytest.fixture(scope="module")
def qwen(folder: str) -> Renderer:
    return Renderer(folder)


def said(renderer: Renderer, *turns: str) -> list[list[int]]:
    return [[*renderer.encode(turn), renderer.tokenizer.eos_token_id] for turn in turns]


def run(
    renderer: Renderer,
    turns: Sequence[Turn],
    environment: Mapping[str, Any] = CALCULATOR,
    budget: int = 1000,
    **options: Any,
) -> tuple[Sample, Script]:
    engine, sample, script = begin(renderer, ask("2 * 3 + 4"), turns, budget)
    return asyncio.run(ToolLoop(environment, **options)(sample, engine)), script


def test_a_call_is_answered_and_does_not_train(qwen: Renderer) -> None:
    sample, script = run(qwen, said(qwen, "<calc>2 * 3 + 4</calc>", "[10]"))
    whole = qwen.tokenizer.decode(sample.prompt_ids + sample.response_ids)
    assert whole == (
        "<|im_start|>user\n2 * 3 + 4<|im_end|>\n<|im_start|>assistant\n<calc>2 * 3 + 4</calc><|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n10\n</tool_response><|im_end|>\n<|im_start|>assistant\n[10]<|im_end|>"
    )
    given = [token for token, counts in zip(sample.response_ids, sample.loss_mask, strict=True) if not counts]
    assert qwen.tokenizer.decode(given).startswith("\n<|im_start|>user\n<tool_response>\n10")
    assert all(
        (mask, logprob, version) == (0, 0.0, UNSAMPLED) or (mask == 1 and logprob < 0 and version == 3)
        for mask, logprob, version in zip(sample.loss_mask, sample.logprobs, sample.weight_versions, strict=True)
    )
    assert (sample.status, count_turns(sample), len(script.bodies)) == (Status.COMPLETED, 2, 2)
    assert sample.response.endswith("\n[10]")


@given(cuts=st.lists(st.integers(1, 12), max_size=4))
def test_a_conversation_that_is_cut_short_anywhere_goes_on_as_if_it_had_not_been(
    qwen: Renderer, cuts: list[int]
) -> None:
    """Aborts after any number of tokens of any turn: the same tokens in the end, each asked for once."""
    turns = said(qwen, "one", "two", "three")
    whole, _ = run(qwen, turns, COUNTDOWN)
    pieces: list[Turn] = []
    for turn in turns:
        if cuts and cuts[0] < len(turn):
            pieces += [{"ids": turn[: cuts[0]], "finish_reason": {"type": "abort"}}, turn[cuts.pop(0) :]]
        else:
            pieces.append(turn)
    engine, sample, script = begin(qwen, ask("2 * 3 + 4"), pieces)
    loop = ToolLoop(COUNTDOWN)
    while sample.status not in (Status.COMPLETED, Status.TRUNCATED):
        assert asyncio.run(loop(sample, engine)) is sample
    assert sample.response_ids == whole.response_ids
    assert (sample.loss_mask, sample.metadata) == (whole.loss_mask, whole.metadata)
    assert not script.turns


COUNTDOWN = {"_target_": f"{__name__}.Countdown"}


def test_turns_and_budget_end_it(qwen: Renderer) -> None:
    turns = said(qwen, "one", "two", "three")
    full, _ = run(qwen, turns, COUNTDOWN)
    assert (full.status, count_turns(full)) == (Status.COMPLETED, 3)
    cut, _ = run(qwen, turns, COUNTDOWN, max_turns=2)
    assert (cut.status, count_turns(cut)) == (Status.TRUNCATED, 2)
    told = full.loss_mask.index(1, full.loss_mask.index(0)) - 4  # of the first answer
    for room, turns_made in ((0, 1), (1, 2)):
        sample, script = run(
            qwen, [turns[0], {"ids": [50], "finish_reason": {"type": "length"}}], COUNTDOWN, 4 + told + room
        )
        assert (sample.status, count_turns(sample), len(script.bodies)) == (Status.TRUNCATED, turns_made, turns_made)
        assert len(sample.response_ids) <= 4 + told + room


def test_environments_that_are_none_or_fail_are_named(qwen: Renderer) -> None:
    with pytest.raises(ComponentError, match="Mute: has no async step"):
        ToolLoop({"_target_": f"{__name__}.Mute"})
    with pytest.raises(ComponentError, match="max_turns=0: must be at least 1"):
        ToolLoop(CALCULATOR, max_turns=0)
    with pytest.raises(ComponentError, match=r"Countdown failed at 'fail' \(sample 2 of group 4\): KeyError: 'broken'"):
        run(qwen, said(qwen, "fail"), COUNTDOWN)


PROMPTS = [
    ask("2 * 3 + 4", turns=("<calc>2 * 3 + 4</calc>",), completion="[10]"),
    ask("7", completion="[7]"),
]


def test_a_warm_start_learns_whole_conversations(qwen: Renderer, folder: str) -> None:
    """The references are what the loop makes of the reference's turns: the same ids, the same mask."""
    practice = Conversations(
        {"_target_": "components.rollout.tools.ToolLoop", "environment": CALCULATOR}, _never, folder
    )
    asked, plain = practice.references(PROMPTS)
    sample, _ = run(qwen, said(qwen, "<calc>2 * 3 + 4</calc>", "[10]"))
    assert (asked.response_ids, asked.loss_mask) == (sample.response_ids, sample.loss_mask)
    assert qwen.tokenizer.decode(plain.response_ids) == "[7]<|im_end|>"
    with pytest.raises(ComponentError, match="ends with its completion, and its environment goes on"):
        practice.references([ask("7", completion="<calc>7</calc>")])


def test_an_examination_samples_all_that_wait_at_once(qwen: Renderer, folder: str) -> None:
    batches: list[int] = []

    def sampler(rows: Sequence[Sequence[int]], temperature: float, max_new_tokens: int) -> list[list[int]]:
        batches.append(len(rows))
        call = [*qwen.encode("<calc>1+1</calc>"), qwen.tokenizer.eos_token_id]
        short = [*qwen.encode("[7]"), qwen.tokenizer.eos_token_id]
        return [short if len(row) < 16 or len(batches) > 1 else call for row in rows]

    practice = Conversations(
        {"_target_": "components.rollout.tools.ToolLoop", "environment": CALCULATOR}, sampler, folder
    )
    exam = practice.exam(PROMPTS, 1.0, 100)
    first, second = exam()
    assert batches == [2, 1]
    assert first.response.endswith("[7]") and "<tool_response>" not in first.response and "2" in first.response
    assert second.response == "[7]"
    assert {sample.status for sample in exam()} == {Status.COMPLETED}


def _never(*_: Any) -> list[list[int]]:
    raise AssertionError("a reference needs no model")
