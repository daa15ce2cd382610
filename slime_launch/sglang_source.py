"""What the installed SGLang accepts, read from its sources without importing it (that takes ten seconds)."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from slime_launch.annotations import plain_type

_EPD_SOURCE = "arg_groups/pd_disaggregation_hook.py"
_FIELDS = "arg_groups/fields"
_SAMPLING_SOURCE = "sampling/sampling_params.py"


@cache
def _inside(path: str) -> Path | None:
    spec = importlib.util.find_spec("sglang")
    roots = (spec.submodule_search_locations or []) if spec else []
    return next((found for root in roots if (found := Path(root, "srt", path)).exists()), None)


@cache
def epd_architectures() -> frozenset[str]:
    """Architectures that the installed SGLang accepts for encoder-prefill-decode."""
    file = _inside(_EPD_SOURCE)
    if file is None:
        return frozenset()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name == "handle_encoder_disaggregation":
            strings = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
            return frozenset(s for s in strings if s.endswith(("ForConditionalGeneration", "Model", "ForCausalLM")))
    return frozenset()


@cache
def server_arguments() -> Mapping[str, Any]:
    """ServerArgs fields -> type; ``Any`` where the annotation says more than plain types can."""
    folder = _inside(_FIELDS)
    found: dict[str, Any] = {}
    for source in folder.glob("*.py") if folder else ():
        for field in _fields(ast.parse(source.read_text())):
            if isinstance(field.target, ast.Name):
                found[field.target.id] = plain_type(field.annotation)
    return found


@cache
def sampling_parameters() -> Mapping[str, Any]:
    """SamplingParams fields -> type; ``Any`` where the annotation says more than plain types can."""
    file = _inside(_SAMPLING_SOURCE)
    classes = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)] if file else []
    body = [item for node in classes if node.name == "SamplingParams" for item in node.body]
    fields = (item for item in body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name))
    return {field.target.id: plain_type(field.annotation) for field in fields if isinstance(field.target, ast.Name)}


def _fields(tree: ast.Module) -> Iterator[ast.AnnAssign]:
    for node in tree.body:
        for item in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(item, ast.AnnAssign):
                yield item
