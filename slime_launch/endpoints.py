"""The running engines as OpenAI-compatible endpoints, for evaluation by tools from outside."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from slime_launch.types import Endpoint

FILE = "endpoints.json"


def addresses(routers: Sequence[Endpoint], engines: Sequence[Endpoint]) -> dict[str, Endpoint]:
    """Who is to be asked for each model: its router, or where it has none its engines, the later ones numbered.

    A model called ``actor`` with two engines and no router is ``actor`` and ``actor-1``.
    """
    named = {router.model: router for router in routers}
    alone = [engine for engine in engines if engine.model not in named]
    for model in dict.fromkeys(engine.model for engine in alone):
        own = [engine for engine in alone if engine.model == model]
        named |= {f"{model}-{number}" if number else model: engine for number, engine in enumerate(own)}
    return named


@contextmanager
def published(run_dir: Path, endpoints: Mapping[str, Endpoint]) -> Iterator[None]:
    """While the run goes on: ``endpoints.json`` in its folder, by name ``base_url``, ``key_file`` and ``model``.

    The keys lie in files that only their owner can read, and go with the run.
    """
    folder = run_dir / "keys"
    folder.mkdir(mode=0o700, exist_ok=True)
    keys = {name: (folder / f"openai-{name}").absolute() for name in endpoints}
    told = {
        name: {"base_url": f"{endpoint.url}/v1", "key_file": str(keys[name]), "model": endpoint.model}
        for name, endpoint in endpoints.items()
    }
    try:
        for name, endpoint in endpoints.items():
            _write_private(keys[name], endpoint.key.encode())
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
