"""Prompts are rendered once: placeholders, images and media that are not taken."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from components.models.glm_omni import tiny as tiny_glm
from components.models.qwen2_5_vl import tiny as tiny_vl
from components.models.qwen3 import tiny as tiny_qwen
from components.rollout.media import check_expansion
from components.rollout.prompts import Renderer
from slime_launch.errors import ComponentError
from slime_launch.types import Prompt
from tests.components.rollout.scripted import ask
from tests.servers import picture


@pytest.fixture(scope="module", params=[tiny_glm, tiny_vl], ids=["glm", "qwen"])
def vision(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    folder = tmp_path_factory.mktemp("vision")
    request.param.write_checkpoint(folder, 1)
    return Renderer(str(folder))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    folder = tmp_path_factory.mktemp("text")
    tiny_qwen.write_checkpoint(folder, 1)
    return Renderer(str(folder))


def test_images_are_expanded_for_the_trainer_and_not_for_the_engine(vision: Renderer) -> None:
    rendered = vision.render(ask("what?", [picture(1), picture(2, 84), picture(3, 112)]))
    image = vision._processor.image_token_id
    assert rendered.request_ids == vision.encode(rendered.text)
    assert rendered.request_ids.count(image) == 3
    assert rendered.ids.count(image) == 4 + 9 + 16
    assert rendered.media["image_grid_thw"].tolist() == [[1, 4, 4], [1, 6, 6], [1, 8, 8]]
    assert len(rendered.media["pixel_values"]) == 16 + 36 + 64
    assert len(rendered.image_data) == 3


def test_the_engine_gets_the_pixels_that_our_processor_saw(vision: Renderer) -> None:
    """A grey picture with transparency: both see the same RGB."""
    import base64

    pixels_HW2 = np.random.default_rng(1).integers(0, 255, (56, 56, 2), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels_HW2, mode="LA").save(out, "PNG")
    sent = vision.render(ask("what?", [out.getvalue()])).image_data[0]
    seen = Image.open(io.BytesIO(base64.b64decode(sent.partition(",")[2])))
    assert seen.mode == "RGB"
    assert (np.asarray(seen) == pixels_HW2[:, :, :1]).all()


@pytest.mark.parametrize("kind", ["video", "audio", "input_audio", "video_url"])
def test_other_media_are_refused_by_name(vision: Renderer, kind: str) -> None:
    prompt = Prompt([{"role": "user", "content": [{"type": kind}, {"type": "text", "text": "what?"}]}], "")
    with pytest.raises(ComponentError, match=f"a part of type {kind}"):
        vision.render(prompt)


def test_images_and_their_parts_have_to_match(vision: Renderer, text: Renderer) -> None:
    two = ask("what?", [picture(1), picture(2)])
    spelled = vision.tokenizer.convert_ids_to_tokens(vision._processor.image_token_id)
    local = [{"role": "user", "content": [{"type": "image", "url": "/etc/passwd"}]}]
    cases = {
        "2 image parts and 1 images": Prompt(two.messages, "", two.images[:1]),
        "0 image parts and 1 images": Prompt(ask("what?").messages, "", two.images[:1]),
        "a prompt with 0 images has 1 placeholders": ask(f"what {spelled}?"),
        "a prompt with 1 images has 2 placeholders": ask(f"what {spelled}?", [picture(1)]),
        "has url: the engine opens no file": Prompt(local, "", two.images[:1]),
        "an image cannot be read": ask("what?", [b"no picture"]),
    }
    for reason, prompt in cases.items():
        with pytest.raises(ComponentError, match=reason):
            vision.render(prompt)
    with pytest.raises(ComponentError, match="the checkpoint has no image processor"):
        text.render(Prompt([{"role": "user", "content": [{"type": "image"}]}], "", (picture(1),)))


def test_tools_that_the_template_does_not_show_are_refused(text: Renderer) -> None:
    with pytest.raises(ComponentError, match="the checkpoint's chat template does not show them"):
        text.render(ask("what?", tools=({"type": "function", "function": {"name": "add"}},)))


@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(1, 4), min_size=12, max_size=12))
def test_an_expansion_is_known_by_its_runs(short: list[int], counts: list[int]) -> None:
    """Token 0 is the placeholder; whatever else is put in, taken out or changed is noticed."""
    repeats = iter(counts)
    expanded = [token for token in short for _ in range(next(repeats) if token == 0 else 1)]
    check_expansion(short, expanded, 0, short.count(0))
    for wrong in ([*expanded, 1], [1, *expanded], [token + 4 for token in expanded], expanded[:-1]):
        if wrong != expanded and not (short[-1:] == [0] and wrong == expanded[:-1]):
            with pytest.raises(ComponentError, match="puts more into a prompt"):
                check_expansion(short, wrong, 0, short.count(0))
