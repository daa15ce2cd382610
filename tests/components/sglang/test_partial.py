"""Partial rollouts on real engines: cut short under one version of the weights, gone on with under the next."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from components.models.qwen3 import tiny
from components.rollout.worker import RolloutWorker
from components.sglang.control import Control
from slime_launch.types import Endpoint, Prompt, Sample
from tests.components.rollout.http_engine import Endless, make_worker
from tests.components.sglang.conftest import Engine, Split, logprobs, sharpen
from tests.servers import get, picture

pytestmark = pytest.mark.servers

STEPS = 3
SHORT, LONG = 4, 160
Exchange = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(autouse=True)
def ours_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIME_LAUNCH_ALLOW_TARGETS", "tests")


class Uneven(Endless):
    """Every second prompt asks for a long answer."""

    def of(self, number: int) -> dict[str, Any]:
        return {"sampling": {"max_new_tokens": LONG if number % 2 else SHORT}}


class Pictured(Uneven):
    """The same, with one or two pictures in two prompts of three."""

    def prompt(self, number: int) -> Prompt:
        images = tuple(picture(number + at, 56 + 28 * at) for at in range(number % 3))
        parts = [*({"type": "image"} for _ in images), {"type": "text", "text": str(number)}]
        content: Any = parts if images else str(number)
        return Prompt([{"role": "user", "content": content}], str(number), images, **self.of(number))


@contextmanager
def working(checkpoint: Path, engine: Endpoint, data: type) -> Iterator[tuple[RolloutWorker, list[Exchange]]]:
    """A rollout worker whose engine's raw answers are kept as they come."""
    made = make_worker(
        checkpoint, "", engines=[engine], data={"_target_": f"{__name__}.{data.__name__}"}, num_prompts=3, group_size=2,
        oversample=2.0, partial={"keep": True}, max_concurrency=8,
        sampling={"temperature": 1.0, "top_p": 1.0, "max_new_tokens": LONG, "ignore_eos": True},
    )  # fmt: skip
    client, exchanges = made._client, []
    assert client is not None
    post = client._post

    async def kept(target: Endpoint, body: dict[str, Any], *args: Any) -> dict[str, Any]:
        answer = await post(target, body, *args)
        exchanges.append((body, answer["meta_info"]))
        return answer

    client._post = kept  # type: ignore[method-assign]
    yield made, exchanges
    made.stop()


def roll(
    made: RolloutWorker, engine: Endpoint, sync: Callable[[int], None]
) -> tuple[list[Sample], list[dict[str, float]]]:
    """Steps with new weights between them; everything that was trained, and what waits at the end."""
    samples, metrics = [], []
    for step in range(1, STEPS + 1):
        sync(step - 1)
        batch, told = made.generate(step)
        (load,) = get(engine, "/v1/loads").json()["loads"]
        assert load["num_running_reqs"] == load["num_waiting_reqs"] == 0
        samples += batch
        metrics.append(told)
    return [*samples, *(sample for group in made._buffer.held for sample in group.samples)], metrics


def check(
    made: RolloutWorker, samples: list[Sample], exchanges: list[Exchange], metrics: list[dict[str, float]]
) -> None:
    """Every token the engine made is in one sample once, with its own logprob and version; some were gone on with."""
    sampled: dict[int, list[tuple[int, float, int]]] = {}
    for body, meta in exchanges:
        rows = [
            (token, logprob, int(meta["weight_version"]))
            for logprob, token, _ in meta.get("output_token_logprobs") or []
        ]
        sampled.setdefault(body["sampling_params"]["sampling_seed"], []).extend(rows)
    for sample in samples:
        rows = zip(sample.response_ids, sample.logprobs, sample.weight_versions, strict=True)
        assert sampled.pop(made._seed_of(sample.group, sample.index)) == list(rows)
        assert len(sample.response_ids) <= (LONG if sample.group % 2 else SHORT)
    assert not any(sampled.values())
    assert sum(len(set(sample.weight_versions)) > 1 for sample in samples) > 1
    assert metrics[0]["rollout/partial/cut"] > 0 and metrics[0]["rollout/off_policy_ratio"] == 0
    assert any(told["rollout/off_policy_ratio"] > 0 for told in metrics)
    assert all(told["rollout/partial/lost_tokens"] == 0 for told in metrics)


def test_text_goes_on_under_new_weights(text: Engine, tmp_path: Path) -> None:
    """Each token's logprob is that of the weights of its own version, behind all tokens before it."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    folders = [tmp_path / str(version) for version in range(STEPS)]
    for version, folder in enumerate(folders):
        tiny.write_checkpoint(folder, 11 + version)
        sharpen(folder)

    sink = pickle.loads(pickle.dumps(text.sink))
    sink.connect()

    def sync(version: int, folder: Path | None = None) -> None:
        sink.begin()
        sink.send(list(load_file((folder or folders[version]) / "model.safetensors").items()), version)
        sink.end()

    try:
        with working(text.checkpoint, text.endpoint, Uneven) as (made, exchanges):
            samples, metrics = roll(made, text.endpoint, sync)
            check(made, samples, exchanges, metrics)
    finally:
        sync(0, text.checkpoint)  # as the other tests of this engine expect it
        sink.close()
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in folders]
    mixed = [sample for sample in samples if len(set(sample.weight_versions)) > 1]
    for sample in mixed:
        theirs_VR = torch.stack([logprobs(model, sample) for model in models])
        versions_R = torch.tensor(sample.weight_versions)
        gap_VR = (theirs_VR - torch.tensor(sample.logprobs)).abs()
        assert gap_VR.gather(0, versions_R[None]).max() < 1e-4
        assert gap_VR.gather(0, (versions_R[None] + 1) % STEPS).max() > 0.1


def test_images_go_on_too(split: Split) -> None:
    from transformers import Glm4vForConditionalGeneration

    control = Control(split.worker.site.url, split.worker.site.keys.admin, 60.0)
    control.open()

    def sync(version: int) -> None:
        control.post(
            "/update_weight_version", {"new_version": str(version), "abort_all_requests": False}, "naming them"
        )

    before = sum(split.encoded())
    with working(split.checkpoint, split.engine, Pictured) as (made, exchanges):
        samples, metrics = roll(made, split.engine, sync)
        check(made, samples, exchanges, metrics)
    control.close()
    sent = sum(told["rollout/images_sent"] for told in metrics)
    assert sum(len(body.get("image_data", ())) for body, _ in exchanges) == sent
    assert 0 < sum(split.encoded()) - before <= sent
    model = Glm4vForConditionalGeneration.from_pretrained(split.checkpoint, dtype=torch.float32)
    mixed = [sample for sample in samples if len(set(sample.weight_versions)) > 1]
    assert any(sample.media for sample in mixed)
    for sample in mixed:
        media = {name: torch.from_numpy(array) for name, array in sample.media.items()}
        assert (logprobs(model, sample, **media) - torch.tensor(sample.logprobs)).abs().max() < 1e-3
