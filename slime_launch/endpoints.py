"""The running engines as OpenAI-compatible endpoints, for evaluation by tools from outside."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from slime_launch.types import Endpoint

FILE = "endpoints.json"


@contextmanager
def published(run_dir: Path, routers: Sequence[Endpoint]) -> Iterator[None]:
    """While the run goes on: ``endpoints.json`` in its folder, by model ``base_url``, ``key_file`` and ``model``.

    The keys lie in files that only their owner can read, and go with the run.
    """
    folder = run_dir / "keys"
    folder.mkdir(mode=0o700, exist_ok=True)
    keys = {router.model: (folder / f"router-{router.model}").absolute() for router in routers}
    told = {
        router.model: {"base_url": f"{router.url}/v1", "key_file": str(keys[router.model]), "model": router.model}
        for router in routers
    }
    try:
        for router in routers:
            _write_private(keys[router.model], router.key.encode())
        _write_private(run_dir / FILE, msgspec.json.format(msgspec.json.encode(told), indent=2) + b"\n")
        yield
    finally:
        for file in (*keys.values(), run_dir / FILE):
            file.unlink(missing_ok=True)
        with suppress(OSError):  # other keys lie there
            folder.rmdir()


def _write_private(file: Path, data: bytes) -> None:
    part = file.with_name(f".{file.name}.part")
    part.unlink(missing_ok=True)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(data)
    os.replace(part, file)
