"""What the installed SGLang accepts, read from its sources without importing it (that takes ten seconds)."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, Optional, Union

_EPD_SOURCE = "arg_groups/pd_disaggregation_hook.py"
_FIELDS = "arg_groups/fields"
_SAMPLING_SOURCE = "sampling/sampling_params.py"
_SCALARS: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str, "None": None}
_GENERIC: dict[str, Any] = {"List": list, "list": list, "Dict": dict, "dict": dict, "Set": set}


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
                found[field.target.id] = _type(field.annotation)
    return found


@cache
def sampling_parameters() -> Mapping[str, Any]:
    """SamplingParams fields -> type; ``Any`` where the annotation says more than plain types can."""
    file = _inside(_SAMPLING_SOURCE)
    classes = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)] if file else []
    body = [item for node in classes if node.name == "SamplingParams" for item in node.body]
    fields = (item for item in body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name))
    return {field.target.id: _type(field.annotation) for field in fields if isinstance(field.target, ast.Name)}


def _fields(tree: ast.Module) -> Iterator[ast.AnnAssign]:
    for node in tree.body:
        for item in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(item, ast.AnnAssign):
                yield item


def _type(annotation: ast.expr) -> Any:
    """The type that an annotation spells with builtins and typing; the first entry of SGLang's ``A[type, help]``."""
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return None
    if isinstance(annotation, ast.Name):
        return _SCALARS.get(annotation.id, _GENERIC.get(annotation.id, Any))
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return Union[_type(annotation.left), _type(annotation.right)]  # noqa: UP007  (made at run time)
    if not isinstance(annotation, ast.Subscript) or not isinstance(annotation.value, ast.Name):
        return Any
    name, inner = annotation.value.id, annotation.slice
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if name == "A":
        return _type(parts[0])
    if name == "Literal":
        return Literal[tuple(part.value for part in parts if isinstance(part, ast.Constant))]
    types = [_type(part) for part in parts]
    if Any in types and name in ("Optional", "Union"):
        return Any
    if name == "Optional":
        return Optional[types[0]]  # noqa: UP045
    if name == "Union":
        return Union[tuple(types)]  # noqa: UP007
    return _GENERIC[name][tuple(types)] if name in _GENERIC else Any
