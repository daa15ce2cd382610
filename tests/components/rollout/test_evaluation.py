"""Held-out sets, each with its own sampling, reward, number of samples, data and pass@k; sampling of single prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from components.rollout.worker import RolloutWorker
from slime_launch.driver import score
from slime_launch.errors import ComponentError
from slime_launch.types import Sample
from tests.components.rollout.http_engine import Endless, HttpEngine, make_worker, serving, worker_args

HERE = __name__
MIX = "components.rewards.mix.Mix"


class Sets(Endless):
    """Three held-out sets."""

    def eval_sets(self) -> dict[str, Any]:
        return {
            "first": [self.prompt(1)],
            "second": [self.prompt(number) for number in (2, 3)],
            "third": [self.prompt(4)],
        }


class None_(Endless):
    """No held-out set."""

    def eval_sets(self) -> dict[str, Any]:
        return {}


class Own(Endless):
    """One held-out set of one prompt, which asks for short answers."""

    def of(self, number: int) -> dict[str, Any]:
        return {"sampling": {"max_new_tokens": 3, "stop": ["x"]}, "source": "own"}

    def eval_sets(self) -> dict[str, Any]:
        return {"whatever": [self.prompt(7)]}


class Hot(Endless):
    """Training prompts with a temperature."""

    def __init__(self, seed: int, name: str = "temperature", value: Any = 0.5) -> None:
        super().__init__(seed)
        self.sampling = {name: value}

    def of(self, number: int) -> dict[str, Any]:
        return {"sampling": self.sampling, "source": "hot"}


class ByIndex:
    """1 for the first sample of a prompt, ``else_`` for the others."""

    def __init__(self, else_: float = 0.0) -> None:
        self.else_, self.steps, self.closed = else_, [], 0
        MADE.append(self)

    def begin_step(self, step: int) -> None:
        self.steps.append(step)

    async def score(self, samples: Sequence[Sample]) -> list[float]:
        return [1.0 if one.index == 0 else self.else_ for one in samples]

    async def close(self) -> None:
        self.closed += 1


MADE: list[ByIndex] = []


class Nothing:
    """No sample gets a reward."""

    async def score(self, samples: Sequence[Sample]) -> list[float]:
        for one in samples:
            one.dropped = "reward_judge"
        return [0.0] * len(samples)


def node(name: str, /, **args: Any) -> dict[str, Any]:
    return {"_target_": f"{HERE}.{name}", **args}


def settings(**changes: Any) -> dict[str, Any]:
    return {"data": {}, "samples": None, "sampling": {}, "reward": None, "pass_at": []} | changes


def test_every_set_is_asked_in_its_own_way(checkpoint: Path) -> None:
    MADE.clear()
    sets = {
        "second": settings(samples=5, sampling={"top_k": 7, "temperature": 0.3}, pass_at=[1, 2, 5]),
        "third": settings(reward={"node": node("ByIndex", else_=0.5), "score": None}),
        "own": settings(data=node("Own"), samples=3),
    }
    with serving(HttpEngine(length=lambda body: 9)) as engine:
        made = make_worker(
            checkpoint,
            engine.url,
            data=node("Sets"),
            reward=node("ByIndex"),
            eval_sets=sets,
            pass_at=[2],
            eval_samples=4,
        )
        told = made.evaluate(3)
        made.stop()
    assert {name: value for name, value in told.items() if name.startswith("eval/")} == pytest.approx({
        "eval/first": 0.25, "eval/first/pass@2": 0.5, "eval/first/greedy": 1.0,
        "eval/second": 0.2, "eval/second/pass@1": 0.2, "eval/second/pass@2": 0.4, "eval/second/pass@5": 1.0,
        "eval/second/greedy": 1.0,
        "eval/third": (1 + 3 * 0.5) / 4, "eval/third/pass@2": 0.5, "eval/third/greedy": 1.0,
        "eval/own": 1 / 3, "eval/own/pass@2": 2 / 3, "eval/own/greedy": 1.0,
    })  # fmt: skip
    assert score(told) == pytest.approx((0.25 + 0.2 + 0.625 + 1 / 3) / 4) and score(told, greedy=True) == 1.0
    asked = [body["sampling_params"] for body, _ in engine.exchanges]
    assert sum(one.get("top_k") == 7 and one["temperature"] == 0.3 for one in asked) == 10
    assert sum(one.get("top_k") == 7 and one["temperature"] == 0.0 for one in asked) == 2
    own = [(one, meta) for one, (_, meta) in zip(asked, engine.exchanges, strict=True) if one.get("stop") == ["x"]]
    assert len(own) == 4 and all(one["max_new_tokens"] == 3 and meta["completion_tokens"] <= 3 for one, meta in own)
    assert [(one.steps, one.closed) for one in MADE] == [([3], 1), ([3], 1)]


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ({"secnd": settings()}, r"rollout.eval_sets.secnd: the data has no held-out set.*first.*second"),
        ({"first": settings(data=node("Own"))}, "two held-out sets called first"),
    ],
)
def test_sets_that_do_not_fit(checkpoint: Path, sets: Mapping[str, Any], said: str) -> None:
    with pytest.raises(ComponentError, match=said):
        make_worker(checkpoint, "http://127.0.0.1:1", data=node("Sets"), eval_sets=sets)


def test_a_run_has_a_held_out_set(checkpoint: Path) -> None:
    with pytest.raises(ComponentError, match="data: there is no held-out set"):
        make_worker(checkpoint, "http://127.0.0.1:1", data=node("None_"))


def test_greedy_is_greedy_whatever_a_prompt_asks_for(checkpoint: Path) -> None:
    with serving(HttpEngine()) as engine:
        made = make_worker(checkpoint, engine.url, data=node("Hot", value=0.5), eval_samples=1)
        made.evaluate(1)
        made.stop()
    asked = sorted(body["sampling_params"]["temperature"] for body, _ in engine.exchanges)
    assert asked == [0.0, 0.0, 0.5, 0.5]


def test_a_start_that_fails_gives_everything_back(checkpoint: Path) -> None:
    MADE.clear()
    args = worker_args(data=node("Sets"), reward=node("ByIndex"), routing={"by": "router", "affinity": False})
    made = RolloutWorker(hf_checkpoint=str(checkpoint), **args)
    with pytest.raises(ComponentError, match="nobody to generate"):
        made.start({})
    made.stop()
    made.stop()
    assert [one.closed for one in MADE] == [1]


def test_a_set_without_any_reward_is_no_zero(checkpoint: Path) -> None:
    with serving(HttpEngine()) as engine:
        made = make_worker(checkpoint, engine.url, reward=node("Nothing"))
        with pytest.raises(ComponentError, match=r"held_out: no sample got a reward \({'reward_judge': "):
            made.evaluate(1)
        made.stop()


class OneTooLong(Endless):
    """The second held-out prompt asks for what the engine refuses."""

    def of(self, number: int) -> dict[str, Any]:
        return {"source": "long", "sampling": {"top_k": 9}} if number == 1001 else {}


def test_a_prompt_that_no_engine_takes_does_not_count(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(HttpEngine(refuses=lambda body: body["sampling_params"].get("top_k") == 9)) as engine:
        made = make_worker(checkpoint, engine.url, data=node("OneTooLong"), reward=node("ByIndex", else_=0.5))
        told = made.evaluate(1)
        assert engine.running == 0
        made.stop()
    assert (told["eval/held_out"], told["eval/held_out/greedy"]) == (0.75, 1.0)
    assert (told["eval/held_out/dropped/refused"], told["eval/held_out/greedy/dropped/refused"]) == (2, 1)
    assert "held_out: goes on without 1 of 2 prompts; one of source long: " in capsys.readouterr().out


class FailsOn(ByIndex):
    """Fails on the set ``first``; its siblings' requests are slow."""

    async def score(self, samples: Sequence[Sample]) -> list[float]:
        if samples[0].prompt.label == "1":
            raise ComponentError("the judge is gone")
        return await super().score(samples)


def test_an_error_in_one_set_leaves_nothing_running(checkpoint: Path) -> None:
    def tick_s(body: Mapping[str, Any]) -> float:
        return 0.001 if body["sampling_params"].get("top_k") == 3 else 0.2

    with serving(HttpEngine(tick_s=tick_s, length=lambda body: 12)) as engine:
        made = make_worker(
            checkpoint,
            engine.url,
            data=node("Sets"),
            reward=node("FailsOn"),
            eval_sets={"first": settings(sampling={"top_k": 3})},
        )
        with pytest.raises(ComponentError, match="the judge is gone"):
            made.evaluate(1)
        assert engine.running == 0
        made.stop()


def test_an_engines_refusal_comes_out_as_it_is(checkpoint: Path) -> None:
    with serving(HttpEngine(refuses=lambda body: True)) as engine:
        made = make_worker(checkpoint, engine.url)
        with pytest.raises(ComponentError, match=r"refused a request: 400 .*too long"):
            made.evaluate(1)
        made.stop()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("temperature", 0.5, "source hot has sampling.temperature=0.5: the trainer"),
        ("temperature", 1.0, None),
        ("temperature", None, None),
        ("repetition_penalty", 1.1, "sampling.repetition_penalty=1.1: the trainer"),
        ("sampling_seed", 3, "sampling.sampling_seed=3: every rollout has its own"),
        ("top_k", 5, None),
    ],
)
def test_training_prompts_are_sampled_as_the_trainer_counts(
    checkpoint: Path, name: str, value: Any, said: str | None
) -> None:
    with serving(HttpEngine()) as engine:
        made = make_worker(checkpoint, engine.url, data=node("Plain", name=name, value=value))
        if said is None:
            made.generate(1)
            assert {body["sampling_params"][name] for body, _ in engine.exchanges} == {value}
        else:
            with pytest.raises(ComponentError, match=said):
                made.generate(1)
        made.stop()


class Plain(Hot):
    """The same, with held-out prompts that ask for nothing."""

    def eval_sets(self) -> dict[str, Any]:
        return {"held_out": Endless(0).eval_sets()["held_out"]}


def test_what_is_called_must_be_callable(checkpoint: Path) -> None:
    for changes, said in (
        ({"filters": {"mine": node("settings")}}, r"rollout\.filters\.mine\..*cannot be called; .*_partial_"),
        ({"generate": node("node")}, r"rollout\.generate\._target_=.*missing 1 required.*_partial_: true"),
    ):
        with pytest.raises(ComponentError, match=said):
            make_worker(checkpoint, "http://127.0.0.1:1", **changes)
