"""Plain containers -> typed config, every problem at once."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from slime_launch.errors import Problem
from slime_launch.schema.renamed import moved


@lru_cache(maxsize=64)
def field_types(cls: type) -> dict[str, Any]:
    """Field name -> annotation (with its Meta) of a schema dataclass."""
    return get_type_hints(cls, include_extras=True)


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation


def nested(annotation: Any) -> tuple[type | None, bool]:
    """(schema dataclass below a field or None, whether the field is a dict of them by name)."""
    bare = _bare(annotation)
    if dataclasses.is_dataclass(bare) and isinstance(bare, type):
        return bare, False
    if get_origin(bare) is dict:
        value = _bare(get_args(bare)[1])
        if dataclasses.is_dataclass(value) and isinstance(value, type):
            return value, True
    return None, False


def nearest(name: str, names: Iterable[str]) -> str:
    """'did you mean X' for the closest of ``names``, else all of them."""
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"choose one of {', '.join(known)}"


def _unknown(key: str, value: object, at: str, types: Iterable[str]) -> Problem:
    """``key`` goes wrong ``at`` its part that is none of ``types``."""
    prefix = at[: at.rfind(".") + 1]
    return Problem(key, value, "unknown key", nearest(at, [prefix + name for name in types]))


def unknown_key(cls: type, dotted: str) -> Problem | None:
    """The problem with a dotted override key, None where the schema has it or leaves its subtree open.

    A renamed key is told with its new spelling, any other with the nearest right one.
    """
    here: type | None = cls
    named = False
    done: list[str] = []
    for part in dotted.split("."):
        if here is None:
            return None
        if named:
            named = False
        else:
            types = field_types(here)
            if part not in types:
                return moved(dotted) or _unknown(dotted, "", ".".join([*done, part]), types)
            here, named = nested(types[part])
        done.append(part)
    return None


_EXPECTED = re.compile(r"Expected `([^`]+)`( [<>=]+ [\d.]+)?")


def _leaf(annotation: Any, value: Any, key: str, default: Any) -> tuple[Any, list[Problem]]:
    try:
        return msgspec.convert(value, annotation), []
    except msgspec.ValidationError as error:
        literal = _bare(annotation)
        match = _EXPECTED.search(str(error))
        if (
            type(None) not in get_args(literal)
            and get_args(literal)
            and all(isinstance(a, str) for a in get_args(literal))
        ):
            mend = (
                nearest(str(value), get_args(literal))
                if isinstance(value, str)
                else f"choose one of {get_args(literal)}"
            )
        elif match:
            mend = f"give {match[1].replace(' | null', ' or null')}{match[2] or ''}"
        else:
            mend = f"the default is {default}"
        reason = str(error).split(" - at")[0].replace("`", "")
        return None, [Problem(key, value, reason[0].lower() + reason[1:], mend)]


def build(cls: type, data: Any, key: str = "") -> tuple[Any, list[Problem]]:
    """Make a ``cls`` from plain containers.

    Returns (object, []) or (None, problems): unknown keys with the nearest right one, wrong types and ranges, all of
    them.
    """
    if not isinstance(data, dict):
        return None, [
            Problem(
                key,
                data,
                "expected a group of keys",
                f"set its keys one by one, e.g. {key}.{next(iter(field_types(cls)))}=...",
            )
        ]
    types = field_types(cls)
    prefix = f"{key}." if key else ""
    wrong = {f"{prefix}{name}": value for name, value in data.items() if name not in types}
    problems = [moved(name, value) or _unknown(name, value, name, types) for name, value in wrong.items()]
    values = {}
    for name in types.keys() & data.keys():
        inner, is_dict = nested(types[name])
        if inner is None:
            default = next(f.default for f in dataclasses.fields(cls) if f.name == name)
            values[name], found = _leaf(types[name], data[name], f"{prefix}{name}", default)
        elif is_dict and isinstance(data[name], dict):
            pairs = {str(k): build(inner, v, f"{prefix}{name}.{k}") for k, v in data[name].items()}
            values[name] = {k: built for k, (built, _) in pairs.items()}
            found = [problem for _, inner_problems in pairs.values() for problem in inner_problems]
        else:
            values[name], found = build(inner, data[name], f"{prefix}{name}")
        problems += found
    return (None, problems) if problems else (cls(**values), [])


def defaults(cls: type) -> dict[str, Any]:
    """The schema's defaults as plain containers: what Hydra composes on top of."""
    return dataclasses.asdict(cls())
