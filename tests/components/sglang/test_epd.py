"""Encoder, language-only worker and router with a tiny GLM-4V: the image must come from the encoder, and be right."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.components.sglang.conftest import MEDIA, Split
from tests.servers import data_uri, listening, picture, post, processes, sampled

pytestmark = pytest.mark.servers

TEXT = "[gMASK]<sop><|user|>\n{images}what is it?<|assistant|>\n"
IMAGE = "<|begin_of_image|><|image|><|end_of_image|>"


class Reference:
    """The same checkpoint in transformers."""

    def __init__(self, checkpoint: Path) -> None:
        from transformers import AutoProcessor, Glm4vForConditionalGeneration

        self.model = Glm4vForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
        self.processor = AutoProcessor.from_pretrained(checkpoint)

    def inputs(self, images: list[bytes]) -> Any:
        from PIL import Image

        text = TEXT.format(images=IMAGE * len(images))
        opened = [Image.open(io.BytesIO(png)).convert("RGB") for png in images]
        return self.processor(text=text, images=opened, return_tensors="pt")

    def logprobs(self, images: list[bytes], response: list[int]) -> torch.Tensor:
        """[T] logprobs of the response, the media tokens having no probability."""
        inputs, T = self.inputs(images), len(response)
        length = inputs["input_ids"].shape[1]
        ids_1S = torch.cat([inputs["input_ids"], torch.tensor([response[:-1]], dtype=torch.long)], 1)
        types_1S = torch.cat([inputs["mm_token_type_ids"], torch.zeros(1, T - 1, dtype=torch.long)], 1)
        media = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
        with torch.no_grad():
            logits_TV = self.model(input_ids=ids_1S, mm_token_type_ids=types_1S, **media).logits[0, length - 1 :]
        logits_TV[:, list(MEDIA)] = -torch.inf
        return logits_TV.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]

    def gaps(self, images: list[bytes], response: list[int], logprobs: list[float]) -> torch.Tensor:
        """[T] distances from the engine's logprobs."""
        return (self.logprobs(images, response) - torch.tensor(logprobs)).abs()


@pytest.fixture(scope="module")
def reference(split: Split) -> Reference:
    return Reference(split.checkpoint)


def request(images: list[bytes]) -> dict[str, Any]:
    return {"text": TEXT.format(images=IMAGE * len(images)), "image_data": [data_uri(png) for png in images]}


def test_logprobs_through_the_router_are_those_of_transformers(split: Split, reference: Reference) -> None:
    batches = [[picture(i)] for i in range(12)] + [[picture(40, 84)], [picture(41), picture(42, 112)]]
    before = sum(split.encoded())
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda images: sampled(split.endpoint, **request(images)), batches))
    assert not {token for ids, _, _ in answers for token in ids} & set(MEDIA)
    gaps = []
    for images, (ids, logprobs, meta) in zip(batches, answers, strict=True):
        assert meta["prompt_tokens"] == reference.inputs(images)["input_ids"].shape[1]
        gaps.append(reference.gaps(images, ids, logprobs))
    assert torch.cat(gaps).max() < 1e-3
    assert torch.cat(gaps).mean() < 1e-4
    assert sum(split.encoded()) - before == sum(map(len, batches))
    assert all(split.encoded()), "an encoder stands idle"


def test_the_image_matters(split: Split, reference: Reference) -> None:
    ids, logprobs, _ = sampled(split.endpoint, **request([picture(1)]))
    assert reference.gaps([picture(2)], ids, logprobs).max() > 0.05


def test_every_image_is_encoded_again_however_often_it_comes(split: Split) -> None:
    before = sum(split.encoded())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: sampled(split.endpoint, tokens=2, **request([picture(3)])), range(8)))
    assert sum(split.encoded()) - before == 8


def test_text_alone_needs_no_encoder(split: Split) -> None:
    before = sum(split.encoded())
    sampled(split.endpoint, input_ids=[30, 31, 32])
    assert sum(split.encoded()) == before


@pytest.mark.parametrize("change", ["n", "list"])
def test_requests_that_would_be_encoded_locally_are_refused(split: Split, change: str) -> None:
    body = request([picture(5)])
    sampling: dict[str, Any] = {"max_new_tokens": 2}
    if change == "n":
        sampling["n"] = 2
    else:
        body = {"text": [body["text"]] * 2, "image_data": [body["image_data"]] * 2}
    reply = post(split.engine, "/generate", body | {"sampling_params": sampling})
    assert reply.status_code == 400
    assert "one request a sample" in reply.text
    sampled(split.engine, tokens=2, **request([picture(5)]))


def test_listen_on_loopback_only(split: Split) -> None:
    for server in (*split.encoders, split.worker, split.router):
        addresses = listening(processes(server))
        assert server.site.url.removeprefix("http://") in addresses
        assert all(address.startswith("127.") for address in addresses), (server.site.name, addresses)


def test_weights_go_into_a_language_only_worker(split: Split, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    weights = load_file(split.checkpoint / "model.safetensors")
    halved = {name: tensor * 0.5 for name, tensor in weights.items() if name == "lm_head.weight"}
    split.sink.connect()
    try:
        for version, changed in enumerate((halved, {"lm_head.weight": weights["lm_head.weight"]}), start=1):
            split.sink.begin()
            split.sink.send(list(changed.items()), version)
            split.sink.end()
            ids, logprobs, meta = sampled(split.endpoint, **request([picture(7)]))
            assert meta["weight_version"] == str(version)
            reference = Reference(split.checkpoint)
            with torch.no_grad():
                reference.model.lm_head.weight.copy_(changed["lm_head.weight"])
            assert reference.gaps([picture(7)], ids, logprobs).max() < 1e-3
    finally:
        split.sink.close()
