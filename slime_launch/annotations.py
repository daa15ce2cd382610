"""Annotations in sources that are not imported, as types that values can be held against."""

from __future__ import annotations

import ast
from typing import Any, Literal, Optional, Union

import msgspec

_SCALARS: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str, "None": None}
_GENERIC: dict[str, Any] = {"List": list, "list": list, "Dict": dict, "dict": dict, "Set": set}


def fault(value: object, wanted: Any) -> str | None:
    """What keeps a value from being of this type, None when nothing does."""
    try:
        msgspec.convert(value, wanted)
    except msgspec.ValidationError as error:
        reason = str(error).split(" - at")[0].replace("`", "")
        return f"{reason[0].lower()}{reason[1:]}"
    return None


def plain_type(annotation: ast.expr) -> Any:
    """The type that an annotation spells with builtins and typing; the first entry of SGLang's ``A[type, help]``."""
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return None
    if isinstance(annotation, ast.Name):
        return _SCALARS.get(annotation.id, _GENERIC.get(annotation.id, Any))
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return Union[plain_type(annotation.left), plain_type(annotation.right)]  # noqa: UP007  (made at run time)
    if not isinstance(annotation, ast.Subscript) or not isinstance(annotation.value, ast.Name):
        return Any
    name, inner = annotation.value.id, annotation.slice
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if name == "A":
        return plain_type(parts[0])
    if name == "Literal":
        return Literal[tuple(part.value for part in parts if isinstance(part, ast.Constant))]
    types = [plain_type(part) for part in parts]
    if Any in types and name in ("Optional", "Union"):
        return Any
    if name == "Optional":
        return Optional[types[0]]  # noqa: UP045
    if name == "Union":
        return Union[tuple(types)]  # noqa: UP007
    return _GENERIC[name][tuple(types)] if name in _GENERIC else Any
