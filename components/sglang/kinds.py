"""The kinds of server as a table: which program, its arguments, when it is healthy and what it provides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx

from components.sglang.keys import Keys, shared_token
from components.sglang.weights import make_sink
from slime_launch.errors import ComponentError
from slime_launch.interfaces import Needs, Provides
from slime_launch.types import Endpoint

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
ENGINE_URLS = {"regular": "engine_url", "prefill": "prefill_url", "decode": "decode_url"}
"""Kinds that a router sends requests to, and what they provide."""
_SPLIT = ("prefill", "decode")


@dataclass(frozen=True)
class Site:
    """One server of a plan; ``shared_key``: a file with the user token that it shares with others."""

    name: str
    kind: str
    host: str
    port: int
    model_path: str
    model: str
    server_args: dict[str, Any]
    weight_sync: dict[str, Any] | None
    keys: Keys
    shared_key: str | None = None
    log: str = ""

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@dataclass(frozen=True)
class Kind:
    """How servers of one kind are started and what they give; each of ``steps`` is repeated until true."""

    program: str
    keys: Callable[[Site, Needs], Keys]
    args: Callable[[Site, Needs], dict[str, Any]]
    steps: tuple[Callable[[Site, httpx.Client, Needs], bool], ...]
    provides: Callable[[Site], Provides]


def network_env(host: str) -> dict[str, str]:
    """Keep the sockets that SGLang and gloo open on their own on the interface the server itself listens on."""
    return {"SGLANG_HOST_IP": host} | ({"GLOO_SOCKET_IFNAME": "lo"} if host in _LOOPBACK else {})


def engine_provides(
    url: str, kind: str, *, keys: Keys, model: str, dp_size: int, bootstrap_port: int | None = None, log: str = ""
) -> dict[str, Any]:
    """What an engine of a kind hands to its router and to the rollout, whoever runs it."""
    return {ENGINE_URLS[kind]: Endpoint(url, keys.user, model, bootstrap_port, dp_size, keys.admin, log)}


def _own_keys(site: Site, needs: Needs) -> Keys:
    return site.keys if site.shared_key is None else replace(site.keys, user=shared_token(site.shared_key))


def _router_keys(site: Site, needs: Needs) -> Keys:
    """A router of prefill and decode engines hands its clients' token on, so that has to be the engines' own."""
    split = [engine for kind, engine in _registered(needs) if kind in _SPLIT]
    if len({engine.key for engine in split}) > 1:
        urls = ", ".join(engine.url for engine in split)
        raise ComponentError(f"router {site.name}: prefill and decode engines must have one key in common: {urls}")
    return replace(site.keys, user=split[0].key) if split else site.keys


def _server_args(site: Site) -> dict[str, Any]:
    return {"model_path": site.model_path, "host": site.host, "port": site.port}


def _encoder_args(site: Site, needs: Needs) -> dict[str, Any]:
    # the encoder's HTTP server knows no keys; its metrics are the count of what it encoded
    return _server_args(site) | {"encoder_only": True, "enable_metrics": True} | site.server_args


def _engine_args(site: Site, needs: Needs) -> dict[str, Any]:
    keys = {"api_key": site.keys.user, "admin_api_key": site.keys.admin}
    encoders = [endpoint.url for endpoint in needs.get("encoder_url", ())]
    split = {"encoder_urls": encoders} if encoders else {}
    return _server_args(site) | keys | split | site.server_args


def _router_args(site: Site, needs: Needs) -> dict[str, Any]:
    kinds = {kind for kind, _ in _registered(needs)}
    if kinds & set(_SPLIT) and kinds != set(_SPLIT):
        raise ComponentError(f"router {site.name}: {' and '.join(sorted(kinds))} engines do not work behind one router")
    own = {"host": site.host, "port": site.port, "api_key": site.keys.user or None, "prometheus_host": site.host}
    return own | {"pd_disaggregation": "prefill" in kinds} | site.server_args


def _answers(client: httpx.Client, path: str) -> bool:
    try:
        return client.get(path).status_code == 200
    except httpx.TransportError:
        return False


def _healthy(site: Site, client: httpx.Client, needs: Needs) -> bool:
    return _answers(client, "/health")


def _alive(site: Site, client: httpx.Client, needs: Needs) -> bool:
    return _answers(client, "/liveness")


def _registered(needs: Needs) -> Iterator[tuple[str, Endpoint]]:
    """(worker type, engine) of everything that a router sends requests to."""
    for kind, name in ENGINE_URLS.items():
        yield from ((kind, engine) for engine in needs.get(name, ()))


def _register_engines(site: Site, client: httpx.Client, needs: Needs) -> bool:
    """Hand the router each engine with the engine's own key; much quicker than its start-up list of workers."""
    for kind, engine in _registered(needs):
        body = {"url": engine.url, "api_key": engine.key, "worker_type": kind}
        if kind == "prefill":
            body["bootstrap_port"] = _bootstrap_port(site, engine)
        reply = client.post("/workers", json=body, headers=_bearer(site))
        if reply.status_code >= 400:
            raise ComponentError(f"router {site.name} refuses {engine.url}: {reply.status_code} {reply.text}")
    return True


def _bootstrap_port(site: Site, engine: Endpoint) -> Any:
    if engine.bootstrap_port is None:
        raise ComponentError(f"router {site.name}: the prefill engine {engine.url} has no bootstrap port")
    return engine.bootstrap_port


def _lists_engines(site: Site, client: httpx.Client, needs: Needs) -> bool:
    listed = client.get("/workers", headers=_bearer(site)).json()["workers"]
    healthy = {worker["url"] for worker in listed if worker["is_healthy"]}
    return healthy >= {url for _, engine in _registered(needs) for url in _listed_as(site, engine)}


def _listed_as(site: Site, engine: Endpoint) -> list[str]:
    """A dp-aware router lists each data-parallel rank as a worker of its own."""
    by_rank = bool(site.server_args.get("dp_aware"))
    return [f"{engine.url}@{rank}" for rank in range(engine.dp_size)] if by_rank else [engine.url]


def _bearer(site: Site) -> dict[str, str]:
    return {"Authorization": f"Bearer {site.keys.user}"}


def _encoder_provides(site: Site) -> Provides:
    return {"encoder_url": Endpoint(site.url, model=site.model)}


def _engine_provides(site: Site) -> Provides:
    port = site.server_args.get("disaggregation_bootstrap_port") if site.kind == "prefill" else None
    ranks = int(site.server_args.get("dp_size", 1))
    given = engine_provides(
        site.url, site.kind, keys=site.keys, model=site.model, dp_size=ranks, bootstrap_port=port, log=site.log
    )
    if site.weight_sync is not None:
        ranks = site.server_args.get("tp_size", 1)
        given["weight_sink"] = make_sink(site.url, site.keys.admin, ranks, site.weight_sync)
    return given


def _router_provides(site: Site) -> Provides:
    return {"router_url": Endpoint(site.url, site.keys.user, site.model, log=site.log)}


def _nothing(site: Site) -> Provides:
    return {}


_ENGINE = Kind("engine", _own_keys, _engine_args, (_healthy,), _engine_provides)
KINDS = {
    "encoder": Kind("engine", _own_keys, _encoder_args, (_healthy,), _encoder_provides),
    "regular": _ENGINE,
    "prefill": _ENGINE,
    "decode": _ENGINE,
    # a later node of an engine: SGLang answers /health there, and nothing else, once its ranks are ready
    "follower": Kind("engine", _own_keys, _engine_args, (_healthy,), _nothing),
    "router": Kind("router", _router_keys, _router_args, (_alive, _register_engines, _lists_engines), _router_provides),
}
