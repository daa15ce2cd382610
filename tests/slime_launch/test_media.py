"""What the driver makes of samples' media before they travel, with Ray's store as a list."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from slime_launch.interfaces import RemoteMedia
from slime_launch.media import LARGE, packed
from slime_launch.types import Prompt, Sample


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[object]]:
    """What was put, and what was read."""
    seen: dict[str, list[object]] = {"put": [], "got": []}

    def put(value: object) -> int:
        seen["put"].append(value)
        return len(seen["put"]) - 1

    def get(ref: int) -> object:
        seen["got"].append(ref)
        return seen["put"][ref]

    monkeypatch.setattr("ray.put", put)
    monkeypatch.setattr("ray.get", get)
    return seen


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((LARGE // 8, 1))


def test_large_arrays_are_stored_once_and_read_when_they_are_asked_for(store: dict[str, list[object]]) -> None:
    grid, pixels = np.array([[1, 4, 4]]), image(0)
    media = {"pixel_values": pixels, "image_grid_thw": grid}
    prompt = Prompt([], "7", images=(b"png",))
    given = [media, media, {"pixel_values": image(0)}, {"pixel_values": image(1)}, {}]
    samples = [Sample(group, 0, prompt, "", [1], media=some) for group, some in enumerate(given)]
    first, same, equal, other, text = packed(samples)
    assert [sample.media["pixel_values"] is pixels for sample in samples[:2]] == [True, True], (
        "the samples stay as they are"
    )
    assert len(store["put"]) == 2, "one for each distinct image"
    assert all(isinstance(sample.media, RemoteMedia) for sample in (first, same, equal, other)) and text.media == {}
    keys = [sample.media.digest("pixel_values") for sample in (first, same, equal, other)]  # type: ignore[attr-defined]
    assert keys[0] == keys[1] == keys[2] != keys[3]
    assert first.media.digest("image_grid_thw") != keys[0]  # type: ignore[attr-defined]
    assert "pixel_values" in first.media and list(first.media) == list(media) and len(first.media) == 2
    assert first.media["image_grid_thw"] is grid and "audio" not in first.media
    assert store["got"] == [], "nothing large was read so far"
    assert np.array_equal(equal.media["pixel_values"], pixels) and store["got"] == [0]
    assert first.prompt == replace(prompt, images=()) and first.prompt is same.prompt
