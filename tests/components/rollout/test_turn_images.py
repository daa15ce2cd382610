"""Images that environments show: bounded, processed once, in every later request, kept over a checkpoint."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.data.media import Media
from components.models.glm_omni import tiny as tiny_glm
from components.rollout.groups import Group, from_plain, to_plain
from components.rollout.prompts import Renderer
from components.rollout.tools import ToolLoop
from slime_launch.errors import ComponentError
from slime_launch.types import Sample, Status
from tests.components.rollout.scripted import Turn, ask, begin
from tests.components.rollout.test_engine import count_calls
from tests.servers import data_uri, picture

USER, IMAGE = 7, 14
ZOOM = {"_target_": "components.rollout.environments.zoom.Zoom", "side": 84}


@pytest.fixture(scope="module")
def glm(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    folder = tmp_path_factory.mktemp("glm")
    tiny_glm.write_checkpoint(folder, 1)
    return Renderer(str(folder))


def shown(*refs: Any) -> list[dict[str, Any]]:
    """A user's message of images."""
    return [{"role": "user", "content": [*({"type": "image", "image": ref} for ref in refs)]}]


def said(glm: Renderer, text: str) -> list[int]:
    return [*glm.encode(text), USER]


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def test_a_zoom_goes_with_every_later_request(glm: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two crops, a turn cut short between them; the processor's outputs are those of the same images at once."""
    processed = count_calls(monkeypatch, type(glm._processor))
    first, cut, last = said(glm, "<zoom>0 0 50 50</zoom>"), glm.encode("<zoom>50 0 1"), said(glm, "7")
    rest = said(glm, "00 100</zoom>")
    turns: list[Turn] = [first, {"ids": cut, "finish_reason": {"type": "abort"}}, rest, last]
    prompt = ask("what?", [picture(1, 112)])
    engine, sample, script = begin(glm, prompt, turns, images=Media())
    loop = ToolLoop(ZOOM)
    assert asyncio.run(loop(sample, engine)).status is Status.ABORTED
    sample = asyncio.run(loop(sample, engine))
    assert (sample.status, len(processed), len(script.turns)) == (Status.COMPLETED, 3, 0)

    whole = Image.open(io.BytesIO(prompt.images[0]))
    crops = [whole.crop((0, 0, 56, 56)).resize((84, 84)), whole.crop((56, 0, 112, 112)).resize((42, 84))]
    at_once = glm.render(ask("?", [png(crop) for crop in crops]))
    for name, array in at_once.media.items():
        assert np.array_equal(np.concatenate([image.media[name] for image in sample.images]), array)
    assert [image.tokens for image in sample.images] == [9, at_once.ids.count(IMAGE) - 9]

    rendered = glm.render(prompt)
    files = [data_uri(image.file) for image in sample.images]
    assert [body["image_data"] for body in script.bodies] == [
        rendered.image_data + files[:number] for number in (0, 1, 1, 2)
    ]
    assert engine.images_sent == 1 + 2 + 2 + 3
    assert [body["input_ids"].count(IMAGE) for body in script.bodies] == [1, 2, 2, 3]
    asked, request = sample.prompt_ids + sample.response_ids[: -len(last)], script.bodies[-1]["input_ids"]
    assert collapsed(asked) == request
    trains = [token for token, counts in zip(sample.response_ids, sample.loss_mask, strict=True) if counts]
    assert trains == first + cut + rest + last
    for image in sample.images:
        assert set(sample.response_ids[image.start : image.start + image.tokens]) == {IMAGE}


def collapsed(ids: Sequence[int]) -> list[int]:
    """Runs of placeholders as one."""
    return [token for at, token in enumerate(ids) if token != IMAGE or at == 0 or ids[at - 1] != IMAGE]


def test_a_prompt_of_text_and_all_kinds_of_images(glm: Renderer, tmp_path: Path) -> None:
    """Bytes, a data URI, a Pillow image, a file below the roots; all of them are kept over a checkpoint."""
    (tmp_path / "a.png").write_bytes(picture(4))
    engine, sample, script = begin(glm, ask("what?"), [[50, USER], [51]], images=Media(roots=[str(tmp_path)]))
    asyncio.run(engine.generate(sample))
    opened = Image.open(io.BytesIO(picture(3, 84))).convert("RGBA")
    turn = asyncio.run(engine.continuation(sample, shown(picture(1), data_uri(picture(2)), opened, "a.png")))
    sample.add_turn(turn)
    assert [image.tokens for image in sample.images] == [4, 4, 9, 4]
    assert sample.media == {} and sample.loss_mask == [1, 1] + [0] * len(turn)
    sample.status = Status.ABORTED
    group = Group(4, glm.render(sample.prompt), {2: [sample]})
    again = from_plain(json.loads(json.dumps(to_plain(group))), glm.render).samples[0]
    for old, new in zip(sample.images, again.images, strict=True):
        assert (old.file, old.start, old.tokens) == (new.file, new.start, new.tokens)
        assert all(np.array_equal(old.media[name], new.media[name]) for name in old.media | new.media)
    asyncio.run(engine.generate(again))
    assert len(script.bodies[1]["image_data"]) == 4 and again.response_ids == [50, USER, *turn.ids, 51]


def refused(glm: Renderer, messages: Sequence[Mapping[str, Any]], images: Media | None = None) -> str:
    engine, sample, _ = begin(glm, ask("what?"), [], images=images)
    sample.add_sampled([50], [-1.0], 0)
    with pytest.raises(ComponentError) as raised:
        asyncio.run(engine.continuation(sample, messages))
    assert sample.images == [] and sample.response_ids == [50]
    return str(raised.value)


@pytest.mark.parametrize(
    ("ref", "reason"),
    [
        (b"no image", "is none of PNG, JPEG, WEBP by its header"),
        (picture(1, 84), "has 84 x 84 pixels; media.max_pixels is 3136"),
        (b"\x89PNG" * 9000, "is larger than media.max_bytes, 30000"),
        ("http://127.0.0.1/a.png", "host 127.0.0.1 is not allowed; name it in media.hosts"),
        ("/etc/passwd", "no folder is open to it; name its folder in media.roots"),
        (7, "int is neither bytes"),
        (None, r"\['image', 'type'\]; it is"),
    ],
)
def test_an_image_that_may_not_be_read_is_named(glm: Renderer, ref: Any, reason: str) -> None:
    assert re.search(reason, refused(glm, shown(ref), Media(max_bytes=30000, max_pixels=56 * 56)))


def test_what_is_no_image_turn_is_refused(glm: Renderer) -> None:
    assert "rollout.media names nothing" in refused(glm, shown(picture(1)))
    film = [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}]
    assert "part of type video: only text and image parts" in refused(glm, film, Media())
    extra = [{"role": "user", "content": [{"type": "image", "image": picture(1), "detail": "high"}]}]
    assert "['detail', 'image', 'type']" in refused(glm, extra, Media())


def test_a_response_that_lost_an_images_places_is_refused(glm: Renderer) -> None:
    engine, sample, _ = begin(glm, ask("what?"), [[50, USER]], images=Media())
    asyncio.run(engine.generate(sample))
    sample.add_turn(asyncio.run(engine.continuation(sample, shown(picture(1)))))
    del sample.response_ids[0]
    with pytest.raises(ComponentError, match="sample 2 of group 4: response_ids 4 to 8 are not the placeholders"):
        asyncio.run(engine.generate(sample))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("7", None),
        ("<zoom>0 0 101 5</zoom>", "error: four"),
        ("<zoom>9 9 9 9</zoom>", "error: four"),
        ("<zoom>5</zoom>", "error: four"),
    ],
)
def test_a_zoom_that_is_none(text: str, answer: str | None) -> None:
    from components.rollout.environments.zoom import Zoom

    sample = Sample(0, 0, ask("?", [picture(1)]), "", [1])
    told = asyncio.run(Zoom().step(sample, text))
    assert [message["content"].startswith(answer) for message in told] == ([True] if answer else [])
