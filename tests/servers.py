"""Real SGLang servers at tiny size, for any test; ``tests/components/sglang/conftest.py`` shows their use."""

from __future__ import annotations

import base64
import io
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from components.sglang.banned import BANNED_ENV
from components.sglang.server import Server
from slime_launch.guard import descendants
from slime_launch.machine import free_ports
from slime_launch.types import Endpoint

HOST = "127.0.0.1"
# one for all, since making one takes 20 ms; it keeps no connection, as servers close idle ones when they like
_CLIENT = httpx.Client(timeout=60.0, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
ENV = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "SLIME_LAUNCH_EPD_ARCHITECTURES": "Glm4vForConditionalGeneration",
}
COMMON = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "dtype": "float32",
    "mem_fraction_static": 0.2,
    "skip_server_warmup": True,
    "log_level": "warning",
    "encoder_transfer_backend": "zmq_to_tokenizer",
}
ARGS: dict[str, dict[str, Any]] = {
    "encoder": COMMON,
    "regular": COMMON
    | {
        "max_total_tokens": 32768,
        "sleep_on_idle": True,
        "disable_overlap_schedule": True,
        "stream_interval": 64,
    },
    "router": {"policy": "round_robin", "log_level": "warn"},
}


def free_port() -> int:
    """A loopback port that nobody listens on now, below those that connections get while the test goes on."""
    return free_ports(1)[0]


def make_server(
    kind: str,
    checkpoint: Path,
    folder: Path,
    *,
    name: str = "",
    model: str = "actor",
    banned: Sequence[int] = (),
    **server_args: Any,
) -> Server:
    """A server that is not started yet; its log lies in ``folder``."""
    name = name or kind
    own = {"prometheus_port": free_port()} if kind == "router" else {}
    via = {"via": "disk", "folder": str(folder / f"weights-{name}")}
    if server_args.get("dp_size", 1) == server_args.get("pp_size", 1) == 1:
        via = {"via": "broadcast", "port": free_port(), "backend": "gloo", "group": name}  # type: ignore[dict-item]
    return Server(
        name=name,
        kind=kind,
        host=HOST,
        port=free_port(),
        model_path=str(checkpoint),
        server_args=ARGS.get(kind, ARGS["regular"]) | own | server_args,
        env=ENV | {BANNED_ENV: ",".join(map(str, banned))},
        log=str(folder / f"{name}.log"),
        start_timeout_s=180.0,
        model=model,
        weight_sync=via | {"timeout_s": 60.0} if kind == "regular" else None,
    )


def language_only() -> dict[str, Any]:
    """Arguments of an engine that takes image embeddings from an encoder, as a plan gives them."""
    return {"language_only": True, "encoder_bootstrap_port": free_port()}


def post(endpoint: Endpoint, path: str, body: dict[str, Any]) -> httpx.Response:
    """POST with the endpoint's key, if it has one."""
    return _CLIENT.post(endpoint.url + path, json=body, headers=bearer(endpoint))


def get(endpoint: Endpoint, path: str) -> httpx.Response:
    """GET with the endpoint's key, if it has one."""
    return _CLIENT.get(endpoint.url + path, headers=bearer(endpoint))


def bearer(endpoint: Endpoint) -> dict[str, str]:
    """The header with an endpoint's key, if it has one."""
    return {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}


def sampled(
    endpoint: Endpoint, tokens: int = 12, seed: int | None = None, **prompt: Any
) -> tuple[list[int], list[float], dict[str, Any]]:
    """Generate at temperature 1 without stopping: (ids, logprobs, meta_info)."""
    sampling: dict[str, Any] = {"max_new_tokens": tokens, "temperature": 1.0, "ignore_eos": True}
    if seed is not None:
        sampling["sampling_seed"] = seed
    reply = post(endpoint, "/generate", prompt | {"sampling_params": sampling, "return_logprob": True})
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    logprobs = [entry[0] for entry in answer["meta_info"]["output_token_logprobs"]]
    return answer["output_ids"], logprobs, answer["meta_info"]


def picture(seed: int, side: int = 56) -> bytes:
    """A PNG of noise."""
    from PIL import Image

    pixels_HWC = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels_HWC).save(out, "PNG")
    return out.getvalue()


def data_uri(png: bytes) -> str:
    """A picture as ``image_data`` takes it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def processes(server: Server) -> list[int]:
    """Ids of the guard of a started server and of everything below it."""
    guarded = server._process
    assert guarded is not None
    return [guarded.pid, *descendants(guarded.pid)]


def listening(pids: list[int]) -> set[str]:
    """Addresses, as in ``127.0.0.1:80``, at which these processes listen."""
    inodes = {link[8:-1] for pid in pids for link in _links(pid) if link.startswith("socket:[")}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(_address(fields[1]))
    return found


def _links(pid: int) -> list[str]:
    folder = Path(f"/proc/{pid}/fd")
    try:
        return [os.readlink(entry) for entry in folder.iterdir()]
    except OSError:
        return []


def _address(field: str) -> str:
    packed, port = field.split(":")
    words = [bytes.fromhex(packed[i : i + 8])[::-1] for i in range(0, len(packed), 8)]
    raw = b"".join(words)
    mapped = raw[:12] == b"\x00" * 10 + b"\xff\xff"
    family = socket.AF_INET if len(raw) == 4 or mapped else socket.AF_INET6
    return f"{socket.inet_ntop(family, raw[12:] if mapped else raw)}:{int(port, 16)}"
