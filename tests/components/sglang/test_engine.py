"""A real engine with a tiny Qwen3: its logprobs, weight sync, keys, sockets, and how it fails."""

from __future__ import annotations

import pickle
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from components.models.qwen3 import tiny
from components.sglang.server import Server
from components.sglang.weights import EngineSink
from slime_launch.errors import ComponentError
from slime_launch.types import Endpoint
from tests.components.sglang.conftest import Engine, sharpen
from tests.servers import HOST, free_port, get, listening, make_server, post, processes, sampled

pytestmark = pytest.mark.servers


def reference(checkpoint: Path, prompt: list[int], response: list[int]) -> list[float]:
    """Logprobs of the response by transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        logits_TV = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits_TV.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0].tolist()


def gap(ours: list[float], theirs: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def test_logprobs_of_a_mixed_batch_are_those_of_transformers(text: Engine) -> None:
    prompts = [[20 + (i * j) % 90 for j in range(3 + 2 * i)] for i in range(16)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda ids: sampled(text.endpoint, tokens=4 + len(ids), input_ids=ids), prompts))
    for prompt, (ids, logprobs, meta) in zip(prompts, answers, strict=True):
        assert meta["finish_reason"] == {"type": "length", "length": 4 + len(prompt)}
        assert gap(logprobs, reference(text.checkpoint, prompt, ids)) < 1e-4


def test_keys_are_asked_for_and_kept_out_of_log_and_command_line(text: Engine) -> None:
    admin = text.server.site.keys.admin
    assert post(Endpoint(text.endpoint.url), "/generate", {"input_ids": [20]}).status_code == 401
    assert post(text.endpoint, "/begin_weight_update", {}).status_code == 401
    log = text.server._log
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    command_lines = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes(text.server))
    for key in (admin, text.endpoint.key):
        assert key not in log.read_text()
        assert key.encode() not in command_lines


def test_info_tells_no_keys(text: Engine) -> None:
    said = get(text.endpoint, "/server_info")
    assert said.status_code == 200
    assert text.server.site.keys.admin not in said.text
    assert text.endpoint.key not in said.text
    assert said.json()["admin_api_key"] == "***"


def test_listens_on_loopback_only(text: Engine) -> None:
    addresses = listening(processes(text.server))
    assert text.endpoint.url.removeprefix("http://") in addresses
    assert all(address.startswith("127.") for address in addresses), addresses


def test_refused_sink_says_so_at_once(text: Engine) -> None:
    wrong = EngineSink(url=text.endpoint.url, key="wrong", group="never", port=free_port(), backend="gloo")
    with pytest.raises(ComponentError, match="was refused \\(401"):
        wrong.connect()
    wrong.close()


def test_a_taken_port_is_named_before_the_engine_waits_for_it(text: Engine) -> None:
    with socket.create_server((HOST, free_port())) as other:
        port = other.getsockname()[1]
        sink = EngineSink(url=text.endpoint.url, key=text.server.site.keys.admin, group="g", port=port, backend="gloo")
        with pytest.raises(ComponentError, match=f"cannot listen for it on {HOST} port {port} \\(Address already"):
            sink.connect()
        sink.close()
    assert sampled(text.endpoint, input_ids=[20, 21])[0]


def test_weights_and_version_arrive_and_old_prefixes_are_forgotten(text: Engine, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tiny.write_checkpoint(tmp_path, 2)
    sharpen(tmp_path)
    weights = list(load_file(tmp_path / "model.safetensors").items())
    prompt = list(range(20, 60))
    sampled(text.endpoint, input_ids=prompt)
    assert sampled(text.endpoint, input_ids=prompt)[2]["cached_tokens"] > 0

    sink = pickle.loads(pickle.dumps(text.sink))
    sink.connect()
    try:
        for version in (6, 7):
            sink.begin()
            sink.send(weights[:9], None)
            sink.send(weights[9:], version)
            sink.end()
        ids, logprobs, meta = sampled(text.endpoint, input_ids=prompt)
    finally:
        sink.close()
        sink.close()
    assert meta["weight_version"] == "7"
    assert meta["cached_tokens"] == 0
    assert gap(logprobs, reference(tmp_path, prompt, ids)) < 1e-4
    assert gap(logprobs, reference(text.checkpoint, prompt, ids)) > 0.1


def test_update_outside_of_a_session_is_refused_without_hanging(text: Engine) -> None:
    admin, port = text.server.site.keys.admin, free_port()
    sink = EngineSink(url=text.endpoint.url, key=admin, group="second", port=port, backend="gloo")
    sink.connect()
    started = time.monotonic()
    with pytest.raises(ComponentError, match="begin_weight_update"):
        sink.send([("lm_head.weight", torch.zeros(112, 128))], 1)
    sink.close()
    assert time.monotonic() - started < 20


JOB = """
import os, pickle, sys
from slime_launch.paths import bind_components
bind_components()
from safetensors.torch import load_file
sink = pickle.loads(bytes.fromhex(sys.stdin.read()))
sink.connect()
sink.begin()
sink.send(list(load_file(sys.argv[1]).items()), 41)
sink.end()
os._exit(0)  # leaves nothing and nobody, as a trainer that was killed
"""


def test_an_engine_that_outlived_its_trainer_takes_the_next_ones_weights(text: Engine, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    weights = load_file(text.checkpoint / "model.safetensors")
    halved = {name: tensor * 0.5 for name, tensor in weights.items()}
    tiny.write_checkpoint(tmp_path / "first", 3)
    job = [sys.executable, "-c", JOB, str(tmp_path / "first" / "model.safetensors")]
    subprocess.run(job, input=pickle.dumps(text.sink).hex(), text=True, check=True, timeout=60)
    assert sampled(text.endpoint, input_ids=[20, 21])[2]["weight_version"] == "41"

    for version, sent in ((0, halved), (1, weights)):
        sink = pickle.loads(pickle.dumps(text.sink))
        sink.connect()
        sink.begin()
        sink.send(list(sent.items()), version)
        sink.end()
        sink.close()
        ids, logprobs, meta = sampled(text.endpoint, input_ids=[20, 21])
        assert meta["weight_version"] == str(version)
        assert (gap(logprobs, reference(text.checkpoint, [20, 21], ids)) < 1e-4) == bool(version)


def test_a_renewed_engine_remembers_and_runs_nothing(text: Engine) -> None:
    prompt = list(range(20, 60))
    sampled(text.endpoint, input_ids=prompt)
    with ThreadPoolExecutor() as pool:
        # one request, several seconds long
        body = {"input_ids": [prompt] * 64, "sampling_params": {"max_new_tokens": 400, "ignore_eos": True}}
        running = pool.submit(post, text.endpoint, "/generate", body)
        time.sleep(1.0)
        given = text.server.renew()
        reply = running.result()
    assert given["engine_url"] == text.endpoint
    ends = [answer["meta_info"]["finish_reason"]["type"] for answer in reply.json()] if reply.status_code == 200 else []
    assert reply.status_code != 200 or "abort" in ends
    assert sampled(text.endpoint, input_ids=prompt)[2]["cached_tokens"] == 0


def test_engine_that_cannot_start_says_why(text: Engine, tmp_path: Path) -> None:
    broken = make_server("regular", text.checkpoint, tmp_path, name="broken", no_such_field=1)
    started = time.monotonic()
    with pytest.raises(ComponentError, match=r"(?s)server broken .* ended with exit code .*broken\.log.*no_such_field"):
        broken.start({})
    assert time.monotonic() - started < 60
    assert broken._process is None
    assert [file.name for file in tmp_path.iterdir()] == ["broken.log"]
    broken.stop()


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ComponentError, match=r"unknown kind decoder; one of encoder, regular, prefill, .* router"):
        Server(
            name="x",
            kind="decoder",
            host="127.0.0.1",
            port=1,
            model_path="",
            server_args={},
            env={},
            log="",
            start_timeout_s=1,
        )
