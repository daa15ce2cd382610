"""Real servers, started once for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from components.models.glm_omni import tiny as tiny_glm
from components.models.qwen3 import tiny as tiny_qwen
from components.sglang.server import Server
from slime_launch.guard import descendants
from slime_launch.interfaces import Provides, WeightSink
from slime_launch.types import Endpoint, Sample
from tests.servers import language_only, make_server, processes

MEDIA = range(10, 16)
"""Ids of the tiny GLM-4V's media tokens, which its engines never sample."""


@dataclass
class Engine:
    """A started engine with what it provides, and a router in front of it where it has one."""

    server: Server
    endpoint: Endpoint
    sink: WeightSink
    checkpoint: Path
    router: Endpoint | None = None


@dataclass
class Split:
    """Two started encoders, a language-only worker that uses both, and a router, with a tiny GLM-4V."""

    encoders: list[Server]
    worker: Server
    router: Server
    encoder_url: Endpoint
    engine: Endpoint
    endpoint: Endpoint
    sink: WeightSink
    checkpoint: Path

    def encoded(self) -> list[int]:
        """Images that each encoder has encoded."""
        return [encoder.encoder_requests() for encoder in self.encoders]


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sglang")


@pytest.fixture(scope="package")
def qwen(folder: Path) -> Path:
    return _checkpoint(folder / "qwen", tiny_qwen, 1)


@pytest.fixture(scope="package")
def glm(folder: Path) -> Path:
    return _checkpoint(folder / "glm", tiny_glm, 1)


@pytest.fixture(scope="package")
def fleet(folder: Path, qwen: Path, glm: Path) -> Iterator[tuple[Engine, Split]]:
    engine, front = make_server("regular", qwen, folder, name="text"), make_server("router", qwen, folder, name="front")
    encoders = [make_server("encoder", glm, folder, name=f"encoder-{index}", model="omni") for index in range(2)]
    worker = make_server("regular", glm, folder, name="worker", model="omni", banned=MEDIA, **language_only())
    router = make_server("router", glm, folder, model="omni")
    with stopped(engine, front, *encoders, worker, router), ThreadPoolExecutor() as pool:
        text = pool.submit(_behind_router, engine, front)
        urls = [given["encoder_url"] for given in pool.map(lambda encoder: encoder.start({}), encoders)]
        given = worker.start({"encoder_url": urls})
        url = router.start({"engine_url": [given["engine_url"]]})["router_url"]
        sink = given["weight_sink"]
        yield text.result(), Split(encoders, worker, router, urls[0], given["engine_url"], url, sink, glm)


@pytest.fixture(scope="package")
def replicas(folder: Path, qwen: Path) -> Iterator[Engine]:
    server = make_server("regular", qwen, folder, name="replicas", dp_size=2)
    with stopped(server):
        yield engine_of(server, server.start({}))


@pytest.fixture(scope="package")
def text(fleet: tuple[Engine, Split]) -> Engine:
    return fleet[0]


@pytest.fixture(scope="package")
def split(fleet: tuple[Engine, Split]) -> Split:
    return fleet[1]


def engine_of(server: Server, given: Provides, router: Endpoint | None = None) -> Engine:
    """A started engine with what it provides."""
    checkpoint = Path(server.site.model_path)
    return Engine(server, given["engine_url"], given["weight_sink"], checkpoint, router)


def _behind_router(server: Server, router: Server) -> Engine:
    given = server.start({})
    return engine_of(server, given, router.start({"engine_url": [given["engine_url"]]})["router_url"])


@contextmanager
def stopped(*servers: Server) -> Iterator[None]:
    """Stop the servers afterwards and see that nothing is left of them."""
    try:
        yield
    finally:
        running = [server for server in servers if server._process is not None]
        pids = [pid for server in running for pid in processes(server)]
        with ThreadPoolExecutor() as pool:
            list(pool.map(Server.stop, running))
    left = [pid for pid in pids if pid in descendants(1) or pid in descendants(os.getpid())]
    assert not left, f"processes {left} outlived their servers"


def _checkpoint(folder: Path, family: Any, seed: int) -> Path:
    family.write_checkpoint(folder, seed)
    sharpen(folder)
    return folder


def sharpen(folder: Path, factor: float = 3.0) -> None:
    """Scale the matrices, so that logprobs depend visibly on positions and images, which random ones hardly do."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    weights = load_file(file)
    save_file({k: v * factor if v.dim() > 1 else v for k, v in weights.items()}, file, metadata={"format": "pt"})


def logprobs(model: Any, sample: Sample, **media: torch.Tensor) -> torch.Tensor:
    """transformers' logprobs [R] of the response."""
    ids_1S = torch.tensor([sample.prompt_ids + sample.response_ids])
    sees = hasattr(model.config, "image_token_id")
    if media:
        media |= {"mm_token_type_ids": (ids_1S == model.config.image_token_id).long()}
    with torch.no_grad():
        logits_RV = model(input_ids=ids_1S, **media).logits[0, len(sample.prompt_ids) - 1 : -1]
    if sees:
        logits_RV[:, list(MEDIA)] = -torch.inf
    return logits_RV.log_softmax(-1).gather(1, torch.tensor(sample.response_ids)[:, None])[:, 0]
