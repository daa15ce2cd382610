"""The one door through which a config's ``_target_`` becomes a Python object.

A target must be a class or function *defined* in an allowed package: ``components``, ``slime_launch`` or what
``allow_targets`` adds. The check runs twice: statically when a plan is made (sources are parsed, nothing is imported),
and on the object itself when it is resolved, so that a re-export of a foreign object through an allowed module does not
pass.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from slime_launch.errors import LaunchError
from slime_launch.paths import ROOT, bind_components

OWN_PACKAGES = ("components", "slime_launch")
ALLOW_ENV = "SLIME_LAUNCH_ALLOW_TARGETS"


class TargetError(LaunchError, ValueError):
    """A ``_target_`` that is not allowed, not found or not callable."""


def allowed_packages() -> tuple[str, ...]:
    """Packages that targets may come from; the launcher hands ``allow_targets`` to its actors by environment."""
    return (*OWN_PACKAGES, *filter(None, os.environ.get(ALLOW_ENV, "").split(",")))


def grant(packages: Sequence[str]) -> None:
    """Let targets come from ``packages`` too, in this process and those below it."""
    os.environ[ALLOW_ENV] = ",".join(packages)


def _under(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def find_targets(node: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Every (key, value) of a ``_target_`` at any depth of a plain container."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            inner = f"{key}.{name}" if key else str(name)
            if name == "_target_":
                yield inner, value
            else:
                yield from find_targets(value, inner)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from find_targets(value, f"{key}[{index}]")


def _module_file(dotted: str) -> Path | None:
    """The source file of a module, found on disk without importing any package on the way."""
    parts = dotted.split(".")
    roots = [str(ROOT)] if parts[0] in OWN_PACKAGES else [entry or "." for entry in sys.path]
    for root in roots:
        base = Path(root, *parts)
        for candidate in (base / "__init__.py", base.with_suffix(".py")):
            if candidate.is_file():
                return candidate
    return None


@lru_cache(maxsize=256)
def _definitions(file: Path) -> tuple[frozenset[str], dict[str, str]]:
    """(names defined by class or def, names imported -> where from) at the top level of a source file."""
    defined: set[str] = set()
    imported: dict[str, str] = {}
    for statement in ast.parse(file.read_text()).body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            defined.add(statement.name)
        elif isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
            imported |= {alias.asname or alias.name: f"{statement.module}.{alias.name}" for alias in statement.names}
    return frozenset(defined), imported


def static_fault(target: object, packages: Sequence[str], depth: int = 0) -> str | None:
    """Why ``target`` may not be used, None when it may. Reads sources only; imports nothing."""
    if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")):
        return "not a dotted name"
    if not _under(target, packages):
        return f"only objects of {', '.join(packages)} are allowed"
    module, _, name = target.rpartition(".")
    file = _module_file(module) if module else None
    if file is None:
        return f"no module {module or target}"
    try:
        defined, imported = _definitions(file)
    except (SyntaxError, UnicodeDecodeError) as error:
        return f"{module} cannot be parsed ({error})"
    if name in defined:
        return None
    if name in imported and depth < 8:
        return static_fault(imported[name], packages, depth + 1)
    return f"{module} defines no class or function {name}"


def resolve(target: str) -> Any:
    """Import what ``target`` names.

    Raises TargetError unless it is a class or function defined in an allowed package.
    """
    packages = allowed_packages()
    if fault := static_fault(target, packages):
        raise TargetError(f"_target_={target}: {fault}")
    if _under(target, ("components",)):
        bind_components()
    module, _, name = target.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    if not (inspect.isclass(found) or inspect.isroutine(found)) or not _under(found.__module__, packages):
        raise TargetError(f"_target_={target}: not a class or function defined in {', '.join(packages)}")
    return found


def instantiate(node: Mapping[str, Any], **runtime: Any) -> Any:
    """Call the object that ``node["_target_"]`` names with the node's other entries and ``runtime``.

    Nested nodes are handed over as they are: who owns them instantiates them. ``_partial_: true`` gives a
    functools.partial.
    """
    if "_target_" not in node:
        raise TargetError(f"no _target_ in {dict(node)}")
    kwargs = {key: value for key, value in node.items() if key not in ("_target_", "_partial_")} | runtime
    found = resolve(node["_target_"])
    return partial(found, **kwargs) if node.get("_partial_") else found(**kwargs)
