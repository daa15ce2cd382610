"""A run that is killed goes on from its last checkpoint to the end, as a user starts it; no step is there twice."""

from __future__ import annotations

import re
import signal
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.runs import Run, read_jsonl

pytestmark = pytest.mark.servers

PROMPTS, GROUP, INTERVAL = 4, 4, 2
OVERRIDES = (
    "+experiment=qwen3_grpo", f"rollout.num_prompts={PROMPTS}", f"rollout.group_size={GROUP}", "seed=3",
    "driver.eval_interval=50", f"trainer.checkpoint.interval={INTERVAL}", "trainer.checkpoint.keep_last=1",
    "trainer.checkpoint.hf_interval=2", "data.eval_size=40",
)  # fmt: skip


@dataclass
class Story:
    """A run killed in the middle, and the one that went on; ``done``: steps in its checkpoint, ``asked``: in all."""

    first_console: str
    rows_before: int
    done: int
    asked: int
    resumed: Run
    overrides: tuple[str, ...]
    env: dict[str, str]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, cache_home: Path) -> Iterator[Story]:
    cwd, env = tmp_path_factory.mktemp("resume"), {"XDG_CACHE_HOME": str(cache_home)}
    run = Run(*OVERRIDES, "trainer.num_steps=500", "resume=auto", cwd=cwd, env=env)
    try:
        run.wait_until(lambda: len(run.metrics()) > 2 * INTERVAL + 1 and bool(checkpoints(run.folder)), 400)
        run.process.send_signal(signal.SIGKILL)
        run.wait(10)
        assert run.gone_within(60)
        console, rows, done = run.console(), len(run.metrics()), max(checkpoints(run.folder))
    finally:
        run.end()
    asked = done + INTERVAL + 1
    overrides = (*OVERRIDES, f"trainer.num_steps={asked}", "resume=auto")
    resumed = Run(*overrides, cwd=cwd, env=env)
    try:
        assert resumed.wait(400) == 0, resumed.console()
        yield Story(console, rows, done, asked, resumed, overrides, env)
    finally:
        resumed.end()


def checkpoints(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in (folder / "checkpoints").glob("step_*")]


def test_it_starts_from_scratch_when_there_is_none(story: Story) -> None:
    assert "there is no whole checkpoint in" in story.first_console and "starting from scratch" in story.first_console


def test_it_says_what_it_restored(story: Story) -> None:
    step = rf"{re.escape(str(story.resumed.folder))}/checkpoints/step_{story.done}: step {story.done}, seed 3, "
    given = rf"data position \(round 0, given {PROMPTS * story.done}, size 4000, seed 3\), "
    done = rf"optimizer after {story.done} updates, random generators restored; "
    going_on = rf"going on with step {story.done + 1} of {story.asked}"
    assert re.search(f"resume: {step}{given}{done}{going_on}", story.resumed.console())


def test_no_step_is_there_twice(story: Story) -> None:
    assert [row["step"] for row in story.resumed.metrics()] == list(range(story.asked + 1))
    samples = read_jsonl(story.resumed.folder / "samples.jsonl")
    assert Counter(sample["step"] for sample in samples) == dict.fromkeys(range(1, story.asked + 1), PROMPTS * GROUP)
    assert all(sample["weight_version"] == sample["step"] - 1 for sample in samples)


def test_the_data_go_on_where_they_were(story: Story) -> None:
    """A round has 4,000 different prompts, so a prompt of two steps would be one that was given again."""
    steps = defaultdict(set)
    for sample in read_jsonl(story.resumed.folder / "samples.jsonl"):
        steps[sample["prompt"]].add(sample["step"])
    assert len(steps) == PROMPTS * story.asked and all(len(found) == 1 for found in steps.values())


def test_the_summary_is_of_the_whole_run(story: Story) -> None:
    summary, rows = story.resumed.summary(), story.resumed.metrics()
    assert (summary["status"], summary["steps"]) == ("completed", story.asked)
    assert summary["eval_before"] == rows[0]["eval/spell_backward"]
    assert summary["eval_after"] == rows[-1]["eval/spell_backward"]


def test_what_is_kept(story: Story) -> None:
    """One checkpoint, the last step's though it is no multiple of the interval; and the exports."""
    assert story.asked % INTERVAL and checkpoints(story.resumed.folder) == [story.asked]
    assert {path.name for path in (story.resumed.folder / "checkpoints").iterdir()} == {f"step_{story.asked}"}
    exports = {path.name for path in story.resumed.folder.glob("hf*")}
    assert exports >= {"hf", *(f"hf_{step}" for step in range(2, story.asked + 1, 2))}
    assert (story.resumed.folder / "hf_2" / "model.safetensors").is_file()


def test_asking_for_no_more_trains_nothing(story: Story) -> None:
    before = (story.resumed.folder / "metrics.jsonl").read_bytes()
    again = Run(*story.overrides, cwd=story.resumed.folder.parent, env=story.env)
    try:
        assert again.wait(60) == 0
        assert f"has done {story.asked} steps" in again.console() and "nothing to do" in again.console()
        assert (again.folder / "metrics.jsonl").read_bytes() == before
    finally:
        again.end()
