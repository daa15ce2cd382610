"""Held-out sets that another server answers by OpenAI's protocol: what it is sent, what counts, how it may fail."""

from __future__ import annotations

import asyncio
import base64
import io
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from PIL import Image

from components.rollout import elsewhere
from components.rollout.preflight import preflight
from components.rollout.worker import RolloutWorker
from slime_launch.driver import score
from slime_launch.errors import ComponentError
from slime_launch.types import Prompt, Sample
from tests.components.rollout.http_engine import Endless, HttpEngine, make_worker, serving, worker_args
from tests.components.rollout.openai_server import Say, answering, completion, refusal
from tests.servers import free_port, picture

HERE = __name__


class Pictures(Endless):
    """Two held-out prompts, one with two images, the answer to which is 7; one asks for its own."""

    def eval_sets(self) -> dict[str, Any]:
        parts = [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}]
        seen = Prompt([{"role": "user", "content": parts}], "7", (picture(1), picture(2, 84)))
        system = {"role": "system", "content": "Be brief."}
        short = Prompt([system, {"role": "user", "content": "8?"}], "8", sampling={"max_new_tokens": 3, "stop": ["x"]})
        return {"seen": [seen, short]}


class Tooled(Endless):
    """A prompt with a tool, and one with a parameter of SGLang's."""

    def __init__(self, seed: int, **of: Any) -> None:
        super().__init__(seed)
        self.all = of

    def of(self, number: int) -> dict[str, Any]:
        return self.all


class Right:
    """1 where the response is the label; keeps what it saw."""

    async def score(self, samples: Sequence[Sample]) -> list[float]:
        SEEN.extend(samples)
        return [float(one.response == one.prompt.label) for one in samples]


SEEN: list[Sample] = []


def node(name: str, **args: Any) -> dict[str, Any]:
    return {"_target_": f"{HERE}.{name}", **args}


def entry(base_url: str, endpoint: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """An evaluation set as the plan gives it to the worker."""
    asked = {
        "base_url": base_url, "model": "big", "key_file": None, "timeout_s": 5.0, "retries": 2, "concurrency": 4,
        "once": False, "fields": {},
    }  # fmt: skip
    own = {"node": node("Right"), "score": None}
    given = {
        "data": {},
        "samples": None,
        "sampling": {},
        "reward": own,
        "pass_at": [],
        "endpoint": asked | (endpoint or {}),
    }
    return given | changes


def ask(checkpoint: Path, sets: dict[str, Any], evaluations: int = 1, **changes: Any) -> list[dict[str, float]]:
    """Evaluations of a worker with these sets, its engine a quick double."""
    with serving(HttpEngine()) as engine:
        made = make_worker(checkpoint, engine.url, eval_sets=sets, **changes)
        try:
            return [made.evaluate(step) for step in range(evaluations)]
        finally:
            made.stop()


def of_set(told: dict[str, float], name: str = "big") -> dict[str, float]:
    return {key: value for key, value in told.items() if key.startswith(f"eval/{name}")}


def test_what_it_is_sent_and_what_is_reported(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    key = tmp_path / "key"
    key.write_text("sk-one\n")
    key.chmod(0o600)
    SEEN.clear()
    endpoint = {"key_file": str(key), "fields": {"max_new_tokens": "max_completion_tokens", "top_k": "top_k"}}
    with answering() as server:
        sets = {
            "big": entry(
                server.base_url, endpoint, data=node("Pictures"), samples=3, pass_at=[1, 3],
                sampling={"temperature": 0.3, "top_k": 5},
            )
        }  # fmt: skip
        (told,) = ask(checkpoint, sets)
    assert of_set(told) == {
        "eval/big": 0.5, "eval/big/pass@1": 0.5, "eval/big/pass@3": 0.5, "eval/big/unanswered": 0.0,
        "eval/big/greedy": 0.5, "eval/big/greedy/unanswered": 0.0,
    }  # fmt: skip
    assert score(told) == told["eval/held_out"] and score(told, greedy=True) == told["eval/held_out/greedy"]
    assert len(server.bodies) == 8 and 1 < server.most <= 4
    assert {head["authorization"] for head in server.heads} == {"Bearer sk-one"}
    assert not {"openai-organization", "openai-project"} & {name for head in server.heads for name in head}
    seen = [body for body in server.bodies if len(body["messages"]) == 1]
    warm = [body for body in seen if body["temperature"] == 0.3]
    assert len(seen) == 4 and len(warm) == 3 and len({body["seed"] for body in warm}) == 3
    for body in seen:
        assert body.keys() == {"model", "messages", "temperature", "top_p", "max_completion_tokens", "top_k", "seed"}
        assert (body["model"], body["max_completion_tokens"], body["top_k"]) == ("big", 16, 5)
        first, text, second = body["messages"][0]["content"]
        assert text == {"type": "text", "text": "and"}
        assert [size(part["image_url"]["url"]) for part in (first, second)] == [(56, 56), (84, 84)]
    (short, *_) = [body for body in server.bodies if len(body["messages"]) == 2]
    assert short["messages"][1] == {"role": "user", "content": "8?"}
    assert short["stop"] == ["x"] and short["max_completion_tokens"] == 3
    foreign = [one for one in SEEN if isinstance(one, elsewhere.TextSample)]
    assert {one.prompt_text for one in foreign} == {"user: and", "system: Be brief.\n\nuser: 8?"}


def size(uri: str) -> tuple[int, int]:
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data))).size


def test_without_data_of_its_own_it_is_asked_the_runs_sets_once_or_always(checkpoint: Path) -> None:
    """A baseline beside the actor; a fixed one costs its requests once, and has its line at every step."""
    with answering() as always, answering() as once:
        sets = {"a": entry(always.base_url), "b": entry(once.base_url, {"once": True}, samples=1)}
        first, second = ask(checkpoint, sets, evaluations=2)
    assert of_set(first, "b") == of_set(second, "b") and of_set(first, "b")["eval/b"] == 0.0
    assert (len(always.bodies), len(once.bodies)) == (2 * 2 * (2 + 1), 2 * (1 + 1))
    seeds = Counter(body["seed"] for body in always.bodies)
    assert set(seeds.values()) == {2, 4}, "the same seeds at each evaluation; the greedy answer has the first sample's"
    said = {body["messages"][0]["content"] for body in always.bodies}
    assert said == {"1000", "1001"} and first["eval/held_out"] == second["eval/held_out"]


def test_a_server_without_a_temperature_is_asked_for_no_greedy_answers(checkpoint: Path) -> None:
    with answering() as server:
        sets = {"big": entry(server.base_url, {"fields": {"temperature": None, "sampling_seed": None}})}
        (told,) = ask(checkpoint, sets)
    assert of_set(told).keys() == {"eval/big", "eval/big/unanswered"}
    assert all(body.keys() == {"model", "messages", "top_p", "max_tokens"} for body in server.bodies)


async def late(body: dict[str, Any]) -> str:
    await asyncio.sleep(2)
    return "7"


async def drips(request: web.Request) -> web.StreamResponse:
    """Never silent for long, and never done."""
    reply = web.StreamResponse(headers={"Content-Type": "application/json"})
    await reply.prepare(request)
    with suppress(ConnectionError):
        for _ in range(40):
            await reply.write(b" ")
            await asyncio.sleep(0.05)
    return reply


FAILS: dict[str, Say] = {
    "RateLimitError: .*no: 429": lambda body: refusal(429, **{"retry-after": "0.01"}),
    "InternalServerError: .*no: 500": lambda body: refusal(500, **{"retry-after-ms": "1"}),
    "BadRequestError: .*no: 400": lambda body: refusal(400),
    "APITimeoutError": late,
    "APITimeoutError.*goes on and on": lambda body: drips,
    "JSON is malformed": lambda body: web.Response(body=b"{nonsense", content_type="application/json"),
    "missing required field `choices`": lambda body: web.json_response({"error": "none"}),
    "APIStatusError": lambda body: web.Response(status=307, headers={"Location": "http://127.0.0.1:9/"}),
    "longer than": lambda body: completion_of(1 << 20),
    "compressed": lambda body: web.Response(
        body=b"x", content_type="application/json", headers={"Content-Encoding": "br"}
    ),
}


def completion_of(length: int) -> web.Response:
    return web.json_response(completion("7" * length))


@pytest.mark.parametrize("reason", FAILS)
def test_a_server_that_fails_ends_the_evaluation_by_name(
    checkpoint: Path, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elsewhere, "_LONGEST_ANSWER", 1 << 19)
    endpoint = {"retries": 1, "timeout_s": 0.3, "concurrency": 64}
    with answering(FAILS[reason]) as server, pytest.raises(ComponentError) as ended:
        ask(checkpoint, {"big": entry(server.base_url, endpoint)})
    said = str(ended.value)
    assert f"rollout.eval_sets.big.endpoint (big at {server.base_url})" in said and "0 were answered" in said
    assert re.search(reason, said), said


def test_up_to_half_may_fail_and_are_counted(checkpoint: Path) -> None:
    """A reason that passes costs a retry; one that stays, the sample."""
    asked: Counter[int] = Counter()

    def say(body: dict[str, Any]) -> Any:
        asked[body["seed"]] += 1
        if body["messages"][0]["content"] == "1000":
            return refusal(400)
        return refusal(503, **{"retry-after-ms": "1"}) if asked[body["seed"]] == 1 else "1001"

    with answering(say) as server:
        (told,) = ask(checkpoint, {"big": entry(server.base_url, samples=4, pass_at=[4])})
    assert of_set(told) == {
        "eval/big": 1.0, "eval/big/pass@4": 1.0, "eval/big/unanswered": 4.0,
        "eval/big/greedy": 1.0, "eval/big/greedy/unanswered": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("status", "kind"), [(401, "AuthenticationError"), (403, "PermissionDenied"), (404, "NotFound")]
)
def test_a_key_a_model_or_an_address_that_is_refused_ends_it_at_once(checkpoint: Path, status: int, kind: str) -> None:
    with answering(lambda body: refusal(status)) as server:
        with pytest.raises(ComponentError, match=rf"big at {server.base_url}\): it refuses every request: {kind}"):
            ask(checkpoint, {"big": entry(server.base_url, {"concurrency": 1})})
        assert len(server.bodies) <= 4


def test_nobody_there_is_told_without_asking_for_every_sample(checkpoint: Path) -> None:
    base_url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(ComponentError, match=r"2 of 400 requests failed and 0 were answered; .*APIConnectionError"):
        ask(checkpoint, {"big": entry(base_url, {"retries": 0, "concurrency": 1}, samples=200)})


def test_a_reward_that_looks_at_tokens_gets_none(checkpoint: Path) -> None:
    """Whatever the part may do when it fails."""
    overlong = {"_target_": "components.rewards.length.Overlong", "weight": 1.0, "max_tokens": 9, "buffer": 0.5}
    with answering() as server:
        for part, said in (
            (overlong, r"reward.parts.short: .*has no response_ids: another server answered it, in text"),
            (overlong | {"on_error": {"fallback": 0.0}}, "evaluation of big: its reward looks at tokens or logprobs"),
        ):
            own = {"node": {"_target_": "components.rewards.mix.Mix", "parts": {"short": part}}, "score": None}
            with pytest.raises(ComponentError, match=said):
                ask(checkpoint, {"big": entry(server.base_url, reward=own)})


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ({"tools": ({"type": "function"},)}, "has tools: their calls would not come as text"),
        ({"sampling": {"min_p": 0.1}}, r"has sampling.min_p=0.1, .*give rollout.eval_sets.big.endpoint.fields.min_p"),
        ({"images": (picture(1),)}, "0 image parts and 1 images"),
    ],
)
def test_prompts_that_cannot_be_sent_are_found_at_the_start(checkpoint: Path, of: dict[str, Any], said: str) -> None:
    sets = {"big": entry("http://127.0.0.1:9/v1", data=node("Tooled", **of))}
    made = RolloutWorker(hf_checkpoint=str(checkpoint), **worker_args(eval_sets=sets))
    with pytest.raises(ComponentError, match=said):
        made.start({})
    made.stop()


def test_sets_need_names_and_the_actor_one_of_its_own(checkpoint: Path) -> None:
    base_url = "http://127.0.0.1:9/v1"
    for sets, changes, said in (
        ({"held_out": entry(base_url)}, {}, "two held-out sets called held_out; rename it"),
        ({"big": entry(base_url, data=node("Pictures"))}, {"data": node("Bare")}, "there is no held-out set"),
    ):
        made = RolloutWorker(hf_checkpoint=str(checkpoint), **worker_args(eval_sets=sets, **changes))
        with pytest.raises(ComponentError, match=said):
            made.start({})
        made.stop()


class Bare(Endless):
    """Nothing held out."""

    def eval_sets(self) -> dict[str, Any]:
        return {}


def test_check_asks_the_server(checkpoint: Path, tmp_path: Path) -> None:
    """Prompts that only it is sent are not rendered by our tokenizer, which may know no images."""

    def found(**endpoint: Any) -> tuple[list[str], str]:
        sets = {"big": entry(server.base_url, endpoint, data=node("Pictures"))}
        told = preflight(worker_args(eval_sets=sets) | {"hf_checkpoint": str(checkpoint)})
        return [str(problem) for problem in told.problems], told.lines[0]

    with answering() as server:
        assert found() == ([], f"rollout.eval_sets.big.endpoint (big at {server.base_url}): it lists the model")
        assert found(model="bigg")[0] == [] and found(model="bigg")[1].endswith("it lists only big")
        (key,), _ = found(key_file=str(tmp_path / "none"))
        assert "endpoint.key_file" in key and "cannot be read" in key
    (gone,), _ = found()
    assert f"rollout.eval_sets.big.endpoint.base_url={server.base_url}: " in gone and "/models is not answered" in gone
