"""Where the answer stands in a response."""

from __future__ import annotations

import re

from slime_launch.errors import ComponentError

ANSWER = r"\[([^\[\]]+)\]"
"""One pair of brackets around the answer, and nothing else."""


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern whose one group is the answer.

    Raises ComponentError when it is no regular expression or has not exactly one group.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ComponentError(f"reward pattern={pattern}: not a regular expression ({error})") from error
    if compiled.groups != 1:
        raise ComponentError(f"reward pattern={pattern}: needs exactly one group, around the answer")
    return compiled


def extract(pattern: re.Pattern[str], response: str) -> str | None:
    """The answer when the whole response, but for white space around it, matches; else None."""
    found = pattern.fullmatch(response.strip())
    return found.group(1).strip() if found else None
