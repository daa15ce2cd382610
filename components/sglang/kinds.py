"""The kinds of server as a table: which program, its arguments, when it is healthy and what it provides."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from components.sglang.weights import EngineSink
from slime_launch.errors import ComponentError
from slime_launch.interfaces import Needs, Provides
from slime_launch.types import Endpoint

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Keys:
    """Bearer tokens of one server, worth nothing elsewhere: ``user`` to generate, ``admin`` for weights and control."""

    user: str
    admin: str

    @classmethod
    def fresh(cls) -> Keys:
        return cls(secrets.token_urlsafe(32), secrets.token_urlsafe(32))

    @property
    def secrets(self) -> list[str]:
        return [self.user, self.admin]


@dataclass(frozen=True)
class Site:
    """One server of a plan."""

    name: str
    host: str
    port: int
    model_path: str
    model: str
    server_args: dict[str, Any]
    weight_sync: dict[str, Any] | None
    keys: Keys

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@dataclass(frozen=True)
class Kind:
    """How servers of one kind are started and what they give; each of ``steps`` is repeated until true."""

    program: str
    args: Callable[[Site, Needs], dict[str, Any]]
    steps: tuple[Callable[[Site, httpx.Client, Needs], bool], ...]
    provides: Callable[[Site], Provides]


def network_env(host: str) -> dict[str, str]:
    """Keep the sockets that SGLang and gloo open on their own on the interface the server itself listens on."""
    return {"SGLANG_HOST_IP": host} | ({"GLOO_SOCKET_IFNAME": "lo"} if host in _LOOPBACK else {})


def _engine_args(site: Site) -> dict[str, Any]:
    return {"model_path": site.model_path, "host": site.host, "port": site.port}


def _encoder_args(site: Site, needs: Needs) -> dict[str, Any]:
    # the encoder's HTTP server knows no keys; its metrics are the count of what it encoded
    return _engine_args(site) | {"encoder_only": True, "enable_metrics": True} | site.server_args


def _regular_args(site: Site, needs: Needs) -> dict[str, Any]:
    keys = {"api_key": site.keys.user, "admin_api_key": site.keys.admin}
    encoders = [endpoint.url for endpoint in needs.get("encoder_url", ())]
    split = {"encoder_urls": encoders} if encoders else {}
    return _engine_args(site) | keys | split | site.server_args


def _router_args(site: Site, needs: Needs) -> dict[str, Any]:
    own = {"host": site.host, "port": site.port, "api_key": site.keys.user, "prometheus_host": site.host}
    return own | site.server_args


def _answers(client: httpx.Client, path: str) -> bool:
    try:
        return client.get(path).status_code == 200
    except httpx.TransportError:
        return False


def _healthy(site: Site, client: httpx.Client, needs: Needs) -> bool:
    return _answers(client, "/health")


def _alive(site: Site, client: httpx.Client, needs: Needs) -> bool:
    return _answers(client, "/liveness")


def _register_engines(site: Site, client: httpx.Client, needs: Needs) -> bool:
    """Hand the router each engine with the engine's own key; much quicker than its start-up list of workers."""
    for engine in needs.get("engine_url", ()):
        body = {"url": engine.url, "api_key": engine.key, "worker_type": "regular"}
        reply = client.post("/workers", json=body, headers=_bearer(site))
        if reply.status_code >= 400:
            raise ComponentError(f"router {site.name} refuses {engine.url}: {reply.status_code} {reply.text}")
    return True


def _lists_engines(site: Site, client: httpx.Client, needs: Needs) -> bool:
    listed = client.get("/workers", headers=_bearer(site)).json()["workers"]
    healthy = {worker["url"] for worker in listed if worker["is_healthy"]}
    return healthy >= {engine.url for engine in needs.get("engine_url", ())}


def _bearer(site: Site) -> dict[str, str]:
    return {"Authorization": f"Bearer {site.keys.user}"}


def _encoder_provides(site: Site) -> Provides:
    return {"encoder_url": Endpoint(site.url, model=site.model)}


def _regular_provides(site: Site) -> Provides:
    provided: dict[str, Any] = {"engine_url": Endpoint(site.url, site.keys.user, site.model)}
    if site.weight_sync is not None:
        parallel = site.server_args.get("tp_size", 1)
        sync = {name: value for name, value in site.weight_sync.items() if name != "via"}
        provided["weight_sink"] = EngineSink(url=site.url, key=site.keys.admin, tp_size=parallel, **sync)
    return provided


def _router_provides(site: Site) -> Provides:
    return {"router_url": Endpoint(site.url, site.keys.user, site.model)}


KINDS = {
    "encoder": Kind("engine", _encoder_args, (_healthy,), _encoder_provides),
    "regular": Kind("engine", _regular_args, (_healthy,), _regular_provides),
    "router": Kind("router", _router_args, (_alive, _register_engines, _lists_engines), _router_provides),
}
