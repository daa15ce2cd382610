"""Scorers of reasoning-gym tasks: no answer of a model is run as code or keeps the event loop from going on."""

import asyncio
import inspect
import re
from pathlib import Path

import pytest
from reasoning_gym.factory import DATASETS

from components.data.reasoning_gym import ReasoningGym
from components.rewards.mix import Mix
from components.rewards.reasoning_gym import RUN_THE_ANSWER, ReasoningGymScore
from components.rollout.preflight import preflight
from slime_launch.errors import ComponentError, DeadlineError
from tests.components.rewards.samples import sample
from tests.components.rollout.http_engine import worker_args

NODE = {"_target_": "components.rewards.reasoning_gym.ReasoningGymScore", "weight": 1.0}


def answered(task, response):
    prompt = ReasoningGym(task, 1, 1, 0).take(1)[0]
    return sample(response, label=prompt.label, metadata=prompt.metadata)


def test_every_scorer_that_evaluates_the_answer_is_refused():
    runs = re.compile(r"\b(?:eval|exec|parse_expr|sympify)\((?!entry\b)")
    found = {task for task, (made, _) in DATASETS.items() if runs.search(inspect.getsource(made.score_answer))}
    ours = {"number_sorting"}  # evaluates entry["answer"], which the package wrote
    assert found - ours == RUN_THE_ANSWER


@pytest.mark.parametrize("task", ["countdown", "spiral_matrix"])
def test_no_answer_runs_as_code(task, tmp_path):
    mark = tmp_path / "ran"
    one = answered(task, f"[__import__('os').system('touch {mark}')]")
    with pytest.raises(ComponentError, match=rf"scorer of {task} runs the model's answer as code.*; use other tasks"):
        asyncio.run(ReasoningGymScore().score_one(one))
    assert not mark.exists()


def test_such_a_task_is_refused_before_anything_runs(tmp_path: Path):
    with pytest.raises(ComponentError, match=r"reward\.parts\.gym: .*scorer of countdown runs"):
        Mix({"gym": {**NODE, "sources": ["countdown"]}})
    data = {"_target_": "components.data.reasoning_gym.ReasoningGym", "size": 4, "eval_size": 1}
    reward = {"_target_": "components.rewards.mix.Mix", "parts": {"gym": NODE}}

    def found(task):
        args = worker_args(hf_checkpoint=str(tmp_path), data={**data, "task": task}, reward=reward)
        return [str(problem) for problem in preflight(args).problems]

    (problem,) = found("countdown")
    assert "scorer of countdown runs the model's answer as code" in problem and "use other tasks" in problem
    assert found("spell_backward") == []


def test_a_scorer_that_hangs_is_killed_and_stops_nobody():
    """The loop goes on beside it, and the next answer is scored."""
    slow = ReasoningGymScore(time_s=2.0, workers=1)
    one, beats = answered("spell_backward", "[abcd]"), 0

    async def go():
        nonlocal beats
        scoring = asyncio.ensure_future(slow.score_one(endless))
        while not scoring.done():
            await asyncio.sleep(0.01)
            beats += 1
        try:
            with pytest.raises(DeadlineError, match=r"for count_primes took more than 2\.0 s"):
                await scoring
            return await slow.score_one(one)
        finally:
            await slow.close()

    endless = sample("[7]", metadata={"task": "count_primes", "entry": Endless()})
    assert 0.0 <= asyncio.run(go()) <= 1.0
    assert beats > 10


class Endless:
    """An entry that nobody finishes reading."""

    def __reduce__(self):
        return eval, ("exec('while True: pass')",)
