"""Data sources as the rollout makes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.rollout.prompts import Renderer
from slime_launch.interfaces import DataSource, Fits
from slime_launch.targets import instantiate
from slime_launch.types import Prompt


def open_source(node: Mapping[str, Any], seed: int, renderer: Renderer | None) -> DataSource:
    """Make the source of a node; one that goes by the length of prompts is told it where there is a renderer."""
    source: DataSource = instantiate(node, seed=seed)
    if renderer is not None and isinstance(source, Fits):

        def length_of(prompt: Prompt) -> int:
            return len(renderer.render(prompt).ids)

        source.fit(length_of)
    return source
