"""Conversations with real engines: the tokens of two turns have transformers' logprobs, and are nowhere made anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from components.sglang.control import Control
from components.sglang.server import Server
from slime_launch.types import UNSAMPLED, Sample
from tests.components.megatron.helpers import all_media
from tests.components.rollout.scripted import ask
from tests.components.rollout.talks import TURN, converse
from tests.components.sglang.conftest import Engine, Split, logprobs
from tests.servers import picture

pytestmark = pytest.mark.servers


def named(server: Server) -> None:
    """Give the engine's weights a version, as a trainer does."""
    control = Control(server.site.url, server.site.keys.admin, 60.0)
    control.open()
    control.post("/update_weight_version", {"new_version": "0", "abort_all_requests": False}, "naming the weights")
    control.close()


def gaps(sample: Sample, model: Any, **media: torch.Tensor) -> torch.Tensor:
    """Distances between the engine's logprobs of the sampled tokens and transformers' on the concatenated ids."""
    logprobs_R = logprobs(model, sample, **media)
    sampled_R = torch.tensor(sample.loss_mask, dtype=torch.bool)
    assert sampled_R.sum() == 2 * TURN
    assert [version == UNSAMPLED for version in sample.weight_versions] == (~sampled_R).tolist()
    return (logprobs_R - torch.tensor(sample.logprobs))[sampled_R].abs()


def test_two_turns_of_text(text: Engine) -> None:
    from transformers import AutoModelForCausalLM

    assert text.router is not None
    named(text.server)
    model = AutoModelForCausalLM.from_pretrained(text.checkpoint, dtype=torch.float32)
    prompts = [ask(question) for question in ("1+1", "and then?", "x" * 40)]
    for sample, sent in converse(text.router, text.checkpoint, prompts):
        assert sent == 0
        assert gaps(sample, model).max() < 1e-4


def test_two_turns_about_images_from_the_encoder(split: Split) -> None:
    """None, one, and several of different sizes, all at once; after its first turn each is shown two more."""
    from transformers import Glm4vForConditionalGeneration

    model = Glm4vForConditionalGeneration.from_pretrained(split.checkpoint, dtype=torch.float32)
    named(split.worker)
    pictures = [[picture(1)], [], [picture(2, 84), picture(3), picture(4, 112)], [picture(5), picture(6, 84)]]
    before = sum(split.encoded())
    shown = [picture(7, 84), picture(8)]
    talks = converse(split.endpoint, split.checkpoint, [ask("what?", images) for images in pictures], shown)
    for images, (sample, sent) in zip(pictures, talks, strict=True):
        assert sent == 3 * len(images) + 2 and [image.tokens for image in sample.images] == [9, 4]
        assert gaps(sample, model, **all_media(sample)).max() < 1e-4
        wrong = all_media(sample)
        wrong["pixel_values"][-16:] = 0
        assert gaps(sample, model, **wrong).max() > 1e-3, "the last image matters to what is sampled behind it"
    assert sum(split.encoded()) - before == 3 * sum(map(len, pictures)) + 2 * len(pictures)
