"""Which family serves an architecture: ``families.json``, data that a planner may read without importing a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType

from slime_launch.errors import ComponentError

AUTO = "auto"
"""As a family's name: the one that ``architectures`` in config.json asks for."""
FAMILIES = Path(__file__).parent / "families.json"


@cache
def families() -> Mapping[str, str]:
    """Architecture (a name in config.json's ``architectures``) -> folder of components/models."""
    return MappingProxyType(json.loads(FAMILIES.read_text()))


def family_name(architectures: Sequence[str]) -> str:
    """The family of the first architecture that has one.

    Raises ComponentError, with the architectures that are known, when none has.
    """
    known = families()
    for architecture in architectures:
        if architecture in known:
            return known[architecture]
    raise ComponentError(
        f"model.family={AUTO}: config.json says architectures={list(architectures)}; known are {sorted(known)}; name "
        "another model, or your own family in model.family"
    )
