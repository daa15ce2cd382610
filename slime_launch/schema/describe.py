"""The schema as rows of text: what the reference page and the tests read."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from msgspec import Meta

from slime_launch.schema.build import field_types, nested

_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_NAMES = {"bool": "true or false", "str": "text"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One leaf key of the schema.

    kind: its type and bounds in words. default: as YAML writes it; empty where the key stands below a name of the
    user's own and is required.
    """

    key: str
    kind: str
    default: str
    unit: str
    help: str


def rows(cls: type, key: str = "") -> Iterator[Row]:
    """Every leaf below a schema dataclass, in the order of the source; ``<name>`` stands for a name of the user's."""
    prefix = f"{key}." if key else ""
    for field in dataclasses.fields(cls):
        annotation = field_types(cls)[field.name]
        inner, named = nested(annotation)
        if inner is not None:
            yield from rows(inner, f"{prefix}{field.name}" + (".<name>" if named else ""))
        else:
            unit, text = about_of(annotation)
            yield Row(f"{prefix}{field.name}", kind(annotation), _default(field), unit, text)


def nodes(cls: type, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, help) of every field below a schema dataclass, groups of keys among them."""
    for name, annotation in field_types(cls).items():
        dotted = f"{key}.{name}" if key else name
        yield dotted, about_of(annotation)[1]
        inner, named = nested(annotation)
        if inner is not None:
            yield from nodes(inner, dotted + (".<name>" if named else ""))


def about_of(annotation: Any) -> tuple[str, str]:
    """(unit, help) of a field; empty where it has none."""
    metas = _metas(annotation)
    units = [str((meta.extra or {}).get("unit", "")) for meta in metas]
    texts = [meta.description or "" for meta in metas]
    return next(filter(None, reversed(units)), ""), next(filter(None, reversed(texts)), "")


def kind(annotation: Any) -> str:
    """A type with its bounds in words: ``int >= 1 or null``; ``component`` for a node with a ``_target_``."""
    if hasattr(annotation, "__metadata__"):
        if any((meta.extra or {}).get("component") for meta in _metas(annotation)):
            return "component"
        return kind(get_args(annotation)[0]) + "".join(f" {bound}" for bound in _bounds(annotation))
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " or ".join("null" if arg is type(None) else kind(arg) for arg in args)
    if origin is list:
        return f"list of {kind(args[0])}"
    if origin is dict:
        return "open keys" if args[1] is Any else f"{kind(args[1])} by name"
    return _NAMES.get(annotation.__name__, str(annotation.__name__))


def _metas(annotation: Any) -> list[Meta]:
    return [meta for meta in getattr(annotation, "__metadata__", ()) if isinstance(meta, Meta)]


def _bounds(annotation: Any) -> Iterator[str]:
    for meta in _metas(annotation):
        yield from (f"{sign} {value:g}" for name, sign in _BOUNDS.items() if (value := getattr(meta, name)) is not None)
        if meta.pattern is not None:
            yield f"matching {meta.pattern}"


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return yaml_value(field.default_factory())
    return "" if field.default is dataclasses.MISSING else yaml_value(field.default)


def yaml_value(value: object) -> str:
    """A plain value the way YAML and overrides write it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
