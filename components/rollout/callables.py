"""What a config names to be called: generate functions and filters, a class's object or a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from slime_launch.errors import ComponentError
from slime_launch.targets import instantiate


def make_callable(key: str, node: Mapping[str, Any]) -> Callable[..., Any]:
    """What the node ``key`` names.

    Raises ComponentError, naming the key, when it cannot be made or called.
    """
    hint = "a class gets the node's arguments, a function needs _partial_: true"
    try:
        made: Any = instantiate(node)
    except TypeError as error:
        raise ComponentError(f"{key}._target_={node['_target_']}: {error}; {hint}") from None
    if not callable(made):
        raise ComponentError(f"{key}._target_={node['_target_']}: gives {made!r:.80}, which cannot be called; {hint}")
    function: Callable[..., Any] = made
    return function
