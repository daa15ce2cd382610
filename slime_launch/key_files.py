"""Files with one token, of servers that someone else runs."""

from __future__ import annotations

import stat
from pathlib import Path

from slime_launch.errors import ComponentError, Problem


def key_problem(where: str, file: str) -> Problem | None:
    """What is wrong with the file that the config key ``where`` names; None when it holds one token."""
    try:
        key = Path(file).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        return Problem(where, file, f"cannot be read ({type(error).__name__})", "name a file with the token")
    if len(key.split()) != 1 or not key.isascii():
        return Problem(where, file, "is not one token", "write the token alone")
    return None


def read_key(where: str, file: str | None) -> str:
    """The token in a file, empty without one; warns where others may read it.

    Raises ComponentError when it cannot be read or is not one token.
    """
    if file is None:
        return ""
    if (problem := key_problem(where, file)) is not None:
        raise ComponentError(str(problem))
    path = Path(file).expanduser()
    if (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077:
        print(f"warning: {where}={file}: others may read it (mode {mode:04o}); use chmod 600", flush=True)
    return path.read_text().strip()
