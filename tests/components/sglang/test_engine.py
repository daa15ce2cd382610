"""A real engine with a tiny Qwen3: its logprobs, weight sync, keys, sockets, and how it fails."""

from __future__ import annotations

import pickle
import signal
import stat
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
from tests.components.sglang.conftest import Text, sharpen
from tests.servers import free_port, listening, make_server, post, processes, sampled

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


def test_logprobs_of_a_mixed_batch_are_those_of_transformers(text: Text) -> None:
    prompts = [[20 + (i * j) % 90 for j in range(3 + 2 * i)] for i in range(16)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda ids: sampled(text.endpoint, tokens=4 + len(ids), input_ids=ids), prompts))
    for prompt, (ids, logprobs, meta) in zip(prompts, answers, strict=True):
        assert meta["finish_reason"] == {"type": "length", "length": 4 + len(prompt)}
        assert gap(logprobs, reference(text.checkpoint, prompt, ids)) < 1e-4


def test_keys_are_asked_for_and_kept_out_of_log_and_command_line(text: Text) -> None:
    admin = text.server.site.keys.admin
    assert post(Endpoint(text.endpoint.url), "/generate", {"input_ids": [20]}).status_code == 401
    assert post(text.endpoint, "/begin_weight_update", {}).status_code == 401
    log = text.server._log
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    command_lines = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes(text.server))
    for key in (admin, text.endpoint.key):
        assert key not in log.read_text()
        assert key.encode() not in command_lines


def test_listens_on_loopback_only(text: Text) -> None:
    addresses = listening(processes(text.server))
    assert text.endpoint.url.removeprefix("http://") in addresses
    assert all(address.startswith("127.") for address in addresses), addresses


def test_refused_sink_says_so_at_once(text: Text) -> None:
    wrong = EngineSink(url=text.endpoint.url, key="wrong", group="never", port=1, backend="gloo")
    with pytest.raises(ComponentError, match="was refused \\(401"):
        wrong.connect()
    wrong.close()


def test_weights_and_version_arrive_and_old_prefixes_are_forgotten(text: Text, tmp_path: Path) -> None:
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


def test_update_outside_of_a_session_is_refused_without_hanging(text: Text) -> None:
    admin, port = text.server.site.keys.admin, free_port()
    sink = EngineSink(url=text.endpoint.url, key=admin, group="second", port=port, backend="gloo")
    sink.connect()
    started = time.monotonic()
    with pytest.raises(ComponentError, match="begin_weight_update"):
        sink.send([("lm_head.weight", torch.zeros(112, 128))], 1)
    sink.close()
    assert time.monotonic() - started < 20


def test_engine_that_cannot_start_says_why(text: Text, tmp_path: Path) -> None:
    broken = make_server("regular", text.checkpoint, tmp_path, name="broken", no_such_field=1)
    started = time.monotonic()
    with pytest.raises(ComponentError, match=r"(?s)server broken .* ended with exit code .*broken\.log.*no_such_field"):
        broken.start({})
    assert time.monotonic() - started < 60
    assert broken._process is None
    assert [file.name for file in tmp_path.iterdir()] == ["broken.log"]
    broken.stop()


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ComponentError, match="unknown kind decoder; one of encoder, regular, router"):
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


def test_death_is_noticed(text: Text) -> None:
    """Last of this file: it ends the engine."""
    import os

    assert text.server.failure() is None
    served = processes(text.server)[1]
    os.kill(served, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while text.server.failure() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "server text" in (text.server.failure() or "")
    assert "exit code 137" in (text.server.failure() or "")
