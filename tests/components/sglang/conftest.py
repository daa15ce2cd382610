"""One engine for text and one encoder-worker-router trio, started once for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from components.models.glm_omni import tiny as tiny_glm
from components.models.qwen3 import tiny as tiny_qwen
from components.sglang.server import Server
from components.sglang.weights import EngineSink
from slime_launch.guard import descendants
from slime_launch.types import Endpoint
from tests.servers import make_server, processes

MEDIA = range(10, 16)
"""Ids of the tiny GLM-4V's media tokens, which its worker never samples."""


@dataclass
class Text:
    """A started engine with a tiny Qwen3."""

    server: Server
    endpoint: Endpoint
    sink: EngineSink
    checkpoint: Path


@dataclass
class Split:
    """A started encoder, language-only worker and router with a tiny GLM-4V."""

    encoder: Server
    worker: Server
    router: Server
    encoder_url: Endpoint
    engine: Endpoint
    endpoint: Endpoint
    sink: EngineSink
    checkpoint: Path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sglang")


@pytest.fixture(scope="session")
def fleet(folder: Path) -> Iterator[tuple[Text, Split]]:
    qwen, glm = _checkpoint(folder / "qwen", tiny_qwen, 1), _checkpoint(folder / "glm", tiny_glm, 1)
    engine, encoder = make_server("regular", qwen, folder, name="text"), make_server("encoder", glm, folder)
    worker, router = (
        make_server("regular", glm, folder, name="worker", banned=MEDIA),
        make_server("router", glm, folder),
    )
    try:
        with ThreadPoolExecutor() as pool:
            text_given = pool.submit(engine.start, {})
            encoder_url = encoder.start({})["encoder_url"]
            worker_given = worker.start({"encoder_url": [encoder_url]})
            router_given = router.start({"engine_url": [worker_given["engine_url"]]})
        text = Text(engine, text_given.result()["engine_url"], text_given.result()["weight_sink"], qwen)
        yield (
            text,
            Split(
                encoder,
                worker,
                router,
                encoder_url,
                worker_given["engine_url"],
                router_given["router_url"],
                worker_given["weight_sink"],
                glm,
            ),
        )
    finally:
        servers = [server for server in (router, worker, encoder, engine) if server._process is not None]
        pids = [pid for server in servers for pid in processes(server)]
        with ThreadPoolExecutor() as pool:
            list(pool.map(Server.stop, servers))
    left = [pid for pid in pids if pid in descendants(1) or pid in descendants(os.getpid())]
    assert not left, f"processes {left} outlived their servers"


@pytest.fixture(scope="session")
def text(fleet: tuple[Text, Split]) -> Text:
    return fleet[0]


@pytest.fixture(scope="session")
def split(fleet: tuple[Text, Split]) -> Split:
    return fleet[1]


def _checkpoint(folder: Path, family: object, seed: int) -> Path:
    family.write_checkpoint(folder, seed)  # type: ignore[attr-defined]
    sharpen(folder)
    return folder


def sharpen(folder: Path, factor: float = 3.0) -> None:
    """Scale the matrices, so that logprobs depend visibly on positions and images, which random ones hardly do."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    weights = load_file(file)
    save_file({k: v * factor if v.dim() > 1 else v for k, v in weights.items()}, file, metadata={"format": "pt"})
