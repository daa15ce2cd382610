"""What the installed Megatron-Core's config takes, read from its sources without importing it."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from slime_launch.annotations import plain_type

_SOURCES = {"transformer/transformer_config.py": "TransformerConfig", "model_parallel_config.py": "ModelParallelConfig"}


@cache
def transformer_fields() -> Mapping[str, Any]:
    """Fields of TransformerConfig and of what it inherits -> type; ``Any`` where the annotation says more than plain
    types can. None where Megatron-Core is not found."""
    spec = importlib.util.find_spec("megatron.core")
    found: dict[str, Any] = {}
    for root in (spec.submodule_search_locations or []) if spec else []:
        for source, name in _SOURCES.items():
            tree = ast.parse((Path(root) / source).read_text())
            classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
            body = [item for node in classes for item in node.body if isinstance(item, ast.AnnAssign)]
            found |= {item.target.id: plain_type(item.annotation) for item in body if isinstance(item.target, ast.Name)}
    return found
