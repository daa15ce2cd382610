"""The spec of ``model.family=auto``: the one of the family that config.json asks for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from components.models.registry import family_name

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig


def layer_spec(config: TransformerConfig, vp_stage: int | None, **options: Any) -> Any:
    """What the family's own ``layer_spec`` answers; ``options`` are its further keywords.

    Raises ComponentError for an architecture that no family serves.
    """
    family = family_name(config.hf.get("architectures") or [])
    spec: Callable[..., Any] = importlib.import_module(f"components.models.{family}.spec").layer_spec
    return spec(config=config, vp_stage=vp_stage, **options)
