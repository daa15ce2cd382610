"""The building blocks of the schema: field types with their bounds and one line of help each."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

Node = Annotated[dict[str, Any], Meta(extra={"component": True})]
"""An open subtree with a ``_target_``: an object of a component and its arguments."""


def about(text: str, unit: str = "") -> Meta:
    """Help (and unit) of a field that has no bounds of its own."""
    return Meta(description=text, extra={"unit": unit})


Count = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
NonNegative = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(gt=0, le=1)]
Decay = Annotated[float, Meta(ge=0, lt=1)]
Seconds = Annotated[float, Meta(gt=0, extra={"unit": "s"})]
