"""Engines of several processes, and several models beside each other: who serves which weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from components.models.qwen3 import tiny
from tests.components.sglang.conftest import MEDIA, Engine, Split, engine_of, sharpen, stopped
from tests.components.sglang.test_engine import gap, reference
from tests.components.sglang.test_epd import Reference, request
from tests.servers import HOST, free_port, get, make_server, picture, post, sampled

pytestmark = pytest.mark.servers

PROMPT = list(range(20, 60))


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("changed")
    tiny.write_checkpoint(folder, 5)
    sharpen(folder)
    return folder


def send(engine: Engine, checkpoint: Path, version: int) -> None:
    """All weights of a checkpoint, in two buckets."""
    from safetensors.torch import load_file

    weights = list(load_file(checkpoint / "model.safetensors").items())
    engine.sink.begin()
    engine.sink.send(weights[:9], None)
    engine.sink.send(weights[9:], version)
    engine.sink.end()


def test_both_replicas_serve_what_came_by_disk(replicas: Engine, changed: Path, folder: Path) -> None:
    engine = replicas
    for rank in (0, 1):
        sampled(engine.endpoint, input_ids=PROMPT, routed_dp_rank=rank)
    engine.sink.connect()
    try:
        for version, checkpoint in ((3, changed), (4, engine.checkpoint), (5, changed)):
            send(engine, checkpoint, version)
            for rank in (0, 1):
                ids, logprobs, meta = sampled(engine.endpoint, input_ids=PROMPT, routed_dp_rank=rank)
                assert (meta["dp_rank"], meta["weight_version"], meta["cached_tokens"]) == (rank, str(version), 0)
                assert gap(logprobs, reference(checkpoint, PROMPT, ids)) < 1e-4
        assert len(list((folder / "weights-replicas").iterdir())) == 1
        send(engine, engine.checkpoint, 0)
    finally:
        engine.sink.close()
        engine.sink.close()
    assert not (folder / "weights-replicas").exists()


def test_weights_of_one_model_leave_the_other_alone(text: Engine, split: Split, changed: Path) -> None:
    assert text.router is not None
    before = sampled(split.endpoint, seed=1, input_ids=[30, 31, 32])
    text.sink.connect()
    try:
        send(text, changed, 9)
        ids, logprobs, meta = sampled(text.router, input_ids=PROMPT)
        assert meta["weight_version"] == "9"
        assert gap(logprobs, reference(changed, PROMPT, ids)) < 1e-4
        send(text, text.checkpoint, 0)
    finally:
        text.sink.close()
    after = sampled(split.endpoint, seed=1, input_ids=[30, 31, 32])
    assert after[0] == before[0]
    assert gap(after[1], before[1]) < 1e-4
    assert after[2]["weight_version"] == before[2]["weight_version"] != "0"


def test_each_model_has_a_router_and_a_key_of_its_own(text: Engine, split: Split) -> None:
    assert text.router is not None
    assert (text.router.model, split.endpoint.model) == ("actor", "omni")
    for mine, engine in ((text.router, text.endpoint), (split.endpoint, split.engine)):
        assert [worker["url"] for worker in get(mine, "/workers").json()["workers"]] == [engine.url]
    theirs = type(text.router)(text.router.url, split.endpoint.key)
    assert post(theirs, "/generate", {"input_ids": [20]}).status_code == 401


@pytest.mark.full
def test_an_image_seen_before_is_encoded_by_the_new_tower(glm: Path, tmp_path: Path) -> None:
    """Stock SGLang answers from the embedding that the old tower made."""
    server = make_server("regular", glm, tmp_path, name="whole", banned=MEDIA)
    with stopped(server):
        _new_tower(engine_of(server, server.start({})))


def _new_tower(engine: Engine) -> None:
    from safetensors.torch import load_file

    image = [picture(3)]
    reference = Reference(engine.checkpoint)
    ids, logprobs, _ = sampled(engine.endpoint, **request(image))
    assert reference.gaps(image, ids, logprobs).max() < 1e-3
    weights = load_file(engine.checkpoint / "model.safetensors")
    tower = {name: tensor * 1.5 for name, tensor in weights.items() if ".visual." in name and "proj" in name}
    assert tower
    engine.sink.connect()
    try:
        engine.sink.begin()
        engine.sink.send(list(tower.items()), 1)
        engine.sink.end()
        ids, logprobs, _ = sampled(engine.endpoint, **request(image))
        assert reference.gaps(image, ids, logprobs).max() > 0.05
        with torch.no_grad():
            for name, parameter in reference.model.named_parameters():
                if name in tower:
                    parameter.copy_(tower[name])
        assert reference.gaps(image, ids, logprobs).max() < 1e-3
    finally:
        engine.sink.close()


@pytest.mark.full
def test_an_engine_on_two_nodes_serves_what_was_broadcast_to_both(qwen: Path, changed: Path, tmp_path: Path) -> None:
    spread = {"tp_size": 2, "nnodes": 2, "dist_init_addr": f"{HOST}:{free_port()}"}
    first = make_server("regular", qwen, tmp_path, name="first", node_rank=0, **spread)
    follower = make_server("follower", qwen, tmp_path, node_rank=1, **spread)
    with stopped(first, follower), ThreadPoolExecutor() as pool:
        started = pool.submit(follower.start, {})
        engine = engine_of(first, first.start({}))
        assert started.result() == {}
        _check_updates(engine, changed)
        assert follower.failure() is None


@pytest.mark.full
def test_pipeline_stages_serve_what_came_by_disk(qwen: Path, changed: Path, tmp_path: Path) -> None:
    server = make_server("regular", qwen, tmp_path, name="stages", pp_size=2)
    with stopped(server):
        _check_updates(engine_of(server, server.start({})), changed)


def _check_updates(engine: Engine, changed: Path) -> None:
    ids, logprobs, _ = sampled(engine.endpoint, input_ids=PROMPT)
    assert gap(logprobs, reference(engine.checkpoint, PROMPT, ids)) < 1e-4
    engine.sink.connect()
    try:
        for version, checkpoint in ((2, changed), (3, engine.checkpoint), (4, changed)):
            send(engine, checkpoint, version)
            ids, logprobs, meta = sampled(engine.endpoint, input_ids=PROMPT)
            assert (meta["weight_version"], meta["cached_tokens"]) == (str(version), 0)
            assert gap(logprobs, reference(checkpoint, PROMPT, ids)) < 1e-4
    finally:
        engine.sink.close()
