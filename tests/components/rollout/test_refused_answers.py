"""Answers that do not hold together: refused, counted, asked for again elsewhere; an engine of nothing else ends it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from components.models.qwen3 import tiny
from components.rollout.answers import vocabulary_of
from slime_launch.errors import ComponentError
from slime_launch.types import Endpoint
from tests.components.rollout.http_engine import Endless, HttpEngine, make_worker, serving

Spoil = Callable[[Mapping[str, Any], dict[str, Any]], bytes | None]


class Odd(Endless):
    """Prompt 1 asks for 7 tokens at most."""

    def of(self, number: int) -> dict[str, Any]:
        return {"sampling": {"max_new_tokens": 7}} if number == 1 else {}


def changed(**entries: Any) -> Spoil:
    """Spoils entries of the answer's meta_info; None leaves one out."""

    def spoil(body: Mapping[str, Any], meta: dict[str, Any]) -> None:
        meta.update(entries)
        for name in [name for name, value in entries.items() if value is None]:
            del meta[name]

    return spoil


def logprob(value: Any, token: int = 21) -> Spoil:
    """Four tokens, one of them with this logprob and id."""
    good = [[-1.0, 20, None]] * 3
    return changed(output_token_logprobs=[*good, [value, token, None]])


BROKEN: dict[str, Spoil] = {
    r"made 4 tokens and sent 0 logprobs": changed(output_token_logprobs=None),
    r"meta_info is broken: Expected `float`, got `null`": logprob(None),  # how SGLang writes NaN
    r"sampled token 100000, and the vocabulary has": logprob(-1.0, 100_000),
    r"sampled token -3, and the vocabulary has": logprob(-1.0, -3),
    r"made 9 tokens and sent 4 logprobs": changed(completion_tokens=9),
    r"made 0 tokens and sent 0 logprobs": changed(completion_tokens=0, output_token_logprobs=[]),
    r"counts 3 tokens before what it samples and the trainer \d+": changed(prompt_tokens=3),
    r"counts None tokens before": changed(prompt_tokens=None),
    r"missing required field `finish_reason`": changed(finish_reason=None),
    r"weight versions .* are not of 4 tokens": changed(weight_versions=[{"version": "0", "start": 0, "end": 2}]),
    r"the answer broke off": lambda body, meta: b'{"meta_info": {',
    r"the answer is no JSON object": lambda body, meta: b'{"meta_info": NaN}',
}


def first(count: int, spoil: Spoil) -> Spoil:
    """Only the first ``count`` answers are spoilt."""
    left = [count]

    def spoils(body: Mapping[str, Any], meta: dict[str, Any]) -> bytes | None:
        left[0] -= 1
        return spoil(body, meta) if left[0] >= 0 else None

    return spoils


def test_whatever_is_wrong_the_request_is_made_again_elsewhere(
    checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The rollouts are those of an engine that never failed, and each is there once."""
    with ExitStack() as stack:
        good = stack.enter_context(serving(HttpEngine()))
        twin = stack.enter_context(serving(HttpEngine()))
        alone = make_worker(checkpoint, twin.url)
        stack.callback(alone.stop)
        wanted = [(one.group, one.index, one.response_ids, one.logprobs) for one in alone.generate(1)[0]]
        for reason, spoil in BROKEN.items():
            bad = stack.enter_context(serving(HttpEngine(spoils=spoil)))
            at = [Endpoint(bad.url, log="/logs/engine-0.log"), Endpoint(good.url)]
            made = make_worker(checkpoint, "", at, max_refused_answers=99)
            samples, told = made.generate(1)
            made.stop()
            assert [(one.group, one.index, one.response_ids, one.logprobs) for one in samples] == wanted, reason
            assert told["rollout/refused_answers"] == told["rollout/refused_answers/engine-0"] > 0, reason
            assert told["rollout/groups_begun"] == 3
            said = capfd.readouterr().out
            assert said.count(f"an answer of {bad.url} is refused") == told["rollout/refused_answers"]
            assert re.search(reason, said), (reason, said)


def test_an_engine_that_gives_nothing_else_ends_the_run(checkpoint: Path) -> None:
    """Not at its first bad answer, and by name; each step counts anew."""
    with serving(HttpEngine(spoils=first(2, logprob(None)))) as engine:
        at = [Endpoint(engine.url, log="/logs/engine-0.log")]
        made = make_worker(checkpoint, "", at, max_refused_answers=2)
        assert made.generate(1)[1]["rollout/refused_answers"] == 2
        engine.version = 1
        engine.spoils = first(2, logprob(None))
        told = made.evaluate(1)
        assert told["eval/refused_answers/engine-0"] == 2 and "eval/refused_answers" not in told
        engine.spoils = logprob(None)
        with pytest.raises(ComponentError) as ended:
            made.generate(2)
        made.stop()
    said = str(ended.value)
    assert engine.url in said and "gave 3 answers that do not hold together" in said
    assert "rollout.max_refused_answers=2" in said and "got `null`" in said and "log is /logs/engine-0.log" in said
    assert engine.running == 0


def test_a_prompt_that_no_engine_answers_well_is_dropped_and_counted(checkpoint: Path) -> None:
    """Three attempts a request; others are generated in its place."""

    def spoils(body: Mapping[str, Any], meta: dict[str, Any]) -> None:
        if body["sampling_params"]["max_new_tokens"] == 7:
            logprob(None)(body, meta)

    data = {"_target_": "tests.components.rollout.test_refused_answers.Odd"}
    with serving(HttpEngine(spoils=spoils)) as engine:
        made = make_worker(checkpoint, engine.url, data=data, max_refused_answers=99, group_size=2)
        samples, told = made.generate(1)
        made.stop()
    assert list(dict.fromkeys(one.group for one in samples)) == [0, 2, 3]
    assert told["rollout/dynamic_filter/drop_refused"] == 1 and 3 <= told["rollout/refused_answers"] <= 6


def test_weights_of_nobody_are_no_matter_of_asking_again(checkpoint: Path) -> None:
    with serving(HttpEngine(spoils=changed(weight_version="default"))) as engine:
        made = make_worker(checkpoint, engine.url)
        with pytest.raises(ComponentError, match="serves weights of version 'default', which no trainer sent"):
            made.generate(1)
        made.stop()


def test_the_vocabulary_is_the_models(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path, 1)
    assert vocabulary_of(tmp_path) == len_of_embedding(tmp_path)
    (tmp_path / "config.json").write_text('{"text_config": {"vocab_size": 7}, "vocab_size": 5}')
    assert vocabulary_of(tmp_path) == 7
    (tmp_path / "config.json").write_text("[]")
    assert vocabulary_of(tmp_path) is None and vocabulary_of(tmp_path / "nowhere") is None


def len_of_embedding(folder: Path) -> int:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "np") as file:
        return int(file.get_slice("model.embed_tokens.weight").get_shape()[0])
