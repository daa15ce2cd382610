"""What each kind is started with and hands on; a real router in front of servers that only write down what they get."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from components.sglang import cpu
from components.sglang.disk import DiskSink
from components.sglang.keys import shared_token
from components.sglang.kinds import KINDS
from components.sglang.preflight import check_router_args, check_server_args, preflight
from components.sglang.server import Server
from components.sglang.weights import EngineSink, make_sink
from slime_launch.errors import ComponentError
from slime_launch.types import Endpoint
from tests.servers import HOST, make_server, post

SYNC = {"via": "broadcast", "port": 1, "backend": "gloo", "group": "g"}


@dataclass
class Recorder:
    """An HTTP server that looks like an engine to a router and keeps the requests to generate."""

    url: str = ""
    got: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture
def recorders() -> Iterator[list[Recorder]]:
    servers, recorders = [], []
    for _ in range(2):
        recorder = Recorder()
        server = ThreadingHTTPServer((HOST, 0), _handler(recorder))
        recorder.url = f"http://{HOST}:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        recorders.append(recorder)
    yield recorders
    for server in servers:
        server.shutdown()


def _handler(recorder: Recorder) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer({"model_path": "/m", "served_model_name": "m", "tp_size": 1, "dp_size": 1})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            recorder.got.append(body | {"authorization": self.headers.get("Authorization")})
            finish = {"type": "length", "length": 1}
            meta = {"id": "x", "prompt_tokens": 1, "completion_tokens": 1, "finish_reason": finish}
            self._answer({"text": "", "output_ids": [1], "meta_info": meta})

        def _answer(self, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


def split_server(kind: str, tmp_path: Path, **args: Any) -> Server:
    mode = {"disaggregation_mode": kind, "disaggregation_bootstrap_port": 8997}
    return Server(
        name=kind, kind=kind, host=HOST, port=1, model_path="/m", server_args=mode | args, env={}, log="x.log",
        start_timeout_s=1.0, weight_sync=SYNC, shared_key=str(tmp_path / "keys" / "actor"),
    )  # fmt: skip


@pytest.mark.servers
def test_a_router_of_split_engines_pairs_them_and_hands_their_one_key_on(
    recorders: list[Recorder], tmp_path: Path
) -> None:
    prefill, decode = (Endpoint(recorder.url, "one", "actor") for recorder in recorders)
    prefill = Endpoint(prefill.url, "one", "actor", bootstrap_port=8765)
    router = make_server("router", tmp_path, tmp_path)
    try:
        given = router.start({"prefill_url": [prefill], "decode_url": [decode]})["router_url"]
        assert given.key == "one"
        sampling = {"max_new_tokens": 1, "sampling_seed": 2**62}
        assert post(given, "/generate", {"input_ids": [1], "sampling_params": sampling}).status_code == 200
        assert post(Endpoint(given.url, "two"), "/generate", {"input_ids": [1]}).status_code == 401
    finally:
        router.stop()
    for recorder in recorders:
        assert len(recorder.got) == 1
        got = recorder.got[0]
        assert (got["bootstrap_host"], got["bootstrap_port"], got["authorization"]) == (HOST, 8765, "Bearer one")
        assert got["sampling_params"]["sampling_seed"] == 2**62
    assert recorders[0].got[0]["bootstrap_room"] == recorders[1].got[0]["bootstrap_room"]


@pytest.mark.parametrize(
    ("needs", "reason"),
    [
        ({"prefill_url": [Endpoint("http://p", "a", "", 1)]}, "prefill engines do not work behind one router"),
        (
            {"engine_url": [Endpoint("http://e")], "decode_url": [Endpoint("http://d")]},
            "decode and regular engines do not work behind one router",
        ),
        (
            {"prefill_url": [Endpoint("http://p", "a", "", 1)], "decode_url": [Endpoint("http://d", "b")]},
            "must have one key in common: http://p, http://d",
        ),
    ],
)
def test_routers_refuse_what_cannot_work(needs: dict[str, list[Endpoint]], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ComponentError, match=reason):
        make_server("router", tmp_path, tmp_path).start(needs)


def test_split_engines_share_a_key_that_only_the_owner_reads(tmp_path: Path) -> None:
    file = tmp_path / "keys" / "actor"
    with ThreadPoolExecutor(16) as pool:
        tokens = set(pool.map(lambda _: shared_token(str(file)), range(64)))
    assert len(tokens) == 1
    assert len(tokens.pop()) > 30
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert [entry.name for entry in file.parent.iterdir()] == ["actor"]


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_split_engines_are_started_and_handed_on_by_their_kind(kind: str, tmp_path: Path) -> None:
    site = split_server(kind, tmp_path, language_only=True).site
    keys = KINDS[kind].keys(site, {})
    assert keys.user == shared_token(str(tmp_path / "keys" / "actor"))
    assert keys.admin == site.keys.admin
    args = KINDS[kind].args(site, {"encoder_url": [Endpoint("http://e0"), Endpoint("http://e1")]})
    assert args["encoder_urls"] == ["http://e0", "http://e1"]
    assert (args["disaggregation_mode"], args["api_key"]) == (kind, site.keys.user)
    assert check_server_args(kind, args) == []
    given = KINDS[kind].provides(site)
    assert given[f"{kind}_url"].bootstrap_port == (8997 if kind == "prefill" else None)
    assert isinstance(given["weight_sink"], EngineSink)


def test_a_follower_hands_nothing_on(tmp_path: Path) -> None:
    args = {"nnodes": 2, "node_rank": 1, "dist_init_addr": "h:1", "tp_size": 2}
    site = make_server("follower", tmp_path, tmp_path, **args).site
    assert KINDS["follower"].provides(site) == {}
    assert check_server_args("follower", KINDS["follower"].args(site, {})) == []


def test_sinks_by_name() -> None:
    assert isinstance(make_sink("http://e", "k", 2, SYNC), EngineSink)
    assert isinstance(make_sink("http://e", "k", 2, {"via": "disk", "folder": "w"}), DiskSink)
    with pytest.raises(ComponentError, match="by broadcast or disk, not by pigeon"):
        make_sink("http://e", "k", 2, {"via": "pigeon"})


def test_ranks_go_round_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda _: {4, 2})
    assert "SGLANG_CPU_OMP_THREADS_BIND" not in cpu.environment({"tp_size": 1})
    assert cpu.environment({"dp_size": 3})["SGLANG_CPU_OMP_THREADS_BIND"] == "2|4|2"
    assert cpu.environment({"tp_size": 2, "pp_size": 2})["SGLANG_CPU_OMP_THREADS_BIND"] == "2|4|2|4"


def test_preflight_reads_names_types_and_choices_of_the_installed_sglang() -> None:
    wrong = {"load_balance_method": "x", "mem_fraction_static": "much", "tp_siz": 2, "max_total_tokens": 4096}
    assert [line.split(";")[0] for line in check_server_args("regular", wrong)] == [
        "error: server_args.load_balance_method=x: not one of auto, round_robin, follow_bootstrap_room, "
        "total_requests, total_tokens",
        "error: server_args.mem_fraction_static=much: expected float | null, got str",
        "error: server_args.tp_siz=2: no such SGLang server argument",
    ]
    assert "did you mean tp_size?" in check_server_args("regular", wrong)[2]
    assert "a prefill server needs it" in check_server_args("prefill", {"disaggregation_mode": "prefill"})[0]
    assert "a decode server" in check_server_args("decode", {})[0]
    assert "a regular server" in check_server_args("regular", {"disaggregation_mode": "decode"})[0]
    assert len(check_server_args("follower", {"nnodes": 2})) == 2


def test_preflight_reads_the_router_too() -> None:
    assert check_router_args({"policy": "cache_aware", "disable_retries": True, "prometheus_port": 1}) == []
    wrong = check_router_args({"policy": "rond", "polcy": "random", "request_timeout_secs": "soon"})
    assert [line.split(":")[1].strip() for line in wrong] == [
        "router_args.policy=rond", "router_args.polcy=random", "router_args.request_timeout_secs=soon",
    ]  # fmt: skip
    assert "did you mean policy?" in wrong[1]


@pytest.mark.parametrize("kind", ["router", "regular"])
def test_servers_find_their_own_faults(kind: str) -> None:
    found = Server.preflight({"kind": kind, "server_args": {"no_such_thing": 1}})
    assert found == preflight({"kind": kind, "server_args": {"no_such_thing": 1}})
    key = "rollout.router_args" if kind == "router" else "rollout.server_args"
    assert [problem.key for problem in found.problems] == [f"{key}.no_such_thing"]
