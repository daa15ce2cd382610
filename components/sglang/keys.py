"""Bearer tokens of servers."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Keys:
    """Tokens of one server, worth nothing elsewhere: ``user`` to generate, ``admin`` for weights and control."""

    user: str
    admin: str

    @classmethod
    def fresh(cls) -> Keys:
        return cls(secrets.token_urlsafe(32), secrets.token_urlsafe(32))

    @property
    def secrets(self) -> list[str]:
        return [self.user, self.admin]


def shared_token(file: str) -> str:
    """The token that servers which name the same file share: whoever comes first makes it (mode 0600).

    file: relative to the working directory, which the servers of a run have in common.
    """
    path = Path(file).absolute()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    own = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with open(os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(secrets.token_urlsafe(32))
    try:
        os.link(own, path)  # whole or not at all, and only if nobody was first
    except FileExistsError:
        pass
    finally:
        own.unlink()
    return path.read_text()
