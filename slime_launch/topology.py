"""rollout.topology -> the actors of its servers: engines, encoders and a router for each served model.

What worker types need, provide and are started with are tables: a new topology is YAML, a new worker type a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slime_launch.model_files import checkpoint_folder
from slime_launch.placement import Placement, Seat
from slime_launch.plan import Actor, Resources
from slime_launch.schema import ACTOR, Config, EngineGroup, Layered, ServedModel

LOOPBACK = "127.0.0.1"
EPD_ENV = "SLIME_LAUNCH_EPD_ARCHITECTURES"
BANNED_ENV = "SLIME_LAUNCH_BANNED_TOKENS"
BACKEND = {"cpu": "gloo", "cuda": "nccl"}

PROVIDES = {
    "encoder": "encoder_url",
    "regular": "engine_url",
    "prefill": "prefill_url",
    "decode": "decode_url",
}
AFFINE = "consistent_hashing"
"""The router policy that keeps the requests of one conversation together."""
SPLIT = ("prefill", "decode")
GENERATES = ("regular", "decode")
"""Worker types whose engines hold running requests."""
TAKES_ENCODERS = ("regular", "prefill")
TAKES_WEIGHTS = ("regular", "prefill", "decode")
KIND_ARGS: dict[str, dict[str, Any]] = {
    "prefill": {"disaggregation_mode": "prefill"},
    "decode": {"disaggregation_mode": "decode"},
}
OWN_PORT = {"prefill": "disaggregation_bootstrap_port"}
ROUTER_NEEDS = ("engine_url", "prefill_url", "decode_url")


@dataclass
class Ports:
    """Hands out ports from ``base`` on, for each node by itself."""

    base: int
    taken: Counter[int] = field(default_factory=Counter)

    def take(self, node: int) -> int:
        """The next port of a node."""
        self.taken[node] += 1
        return self.base + self.taken[node] - 1

    @property
    def width(self) -> int:
        """Ports of the node that has most."""
        return max(self.taken.values(), default=0)


@dataclass(frozen=True)
class Site:
    """What all actors of a plan share."""

    config: Config
    device: str
    checkpoint: str
    ports: Ports
    placement: Placement
    banned_tokens: list[int]

    def address(self, node: int) -> str:
        """Where servers of a node listen; of several machines the launcher fills the address in."""
        return LOOPBACK if self.config.cluster.loopback else f"{{node{node}}}"

    def gpu_share(self, seat: Seat) -> float:
        """The share of its GPUs that a process of this seat may use, rounded down to hundredths."""
        tenants = self.placement.tenants
        most = max((tenants[seat.node, gpu] for gpu in seat.gpus), default=0)
        return len(seat.gpus) * (100 // most) / 100 if most else 0.0


def component(node: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(target, the other entries) of a component node."""
    return node["_target_"], {key: value for key, value in node.items() if key != "_target_"}


def served_models(config: Config) -> dict[str, ServedModel]:
    """Every served model by name, the actor first."""
    return {ACTOR: ServedModel()} | config.rollout.topology.models


def groups_of(config: Config, model: str) -> dict[str, EngineGroup]:
    """The engine groups that serve a model, placeholders left out."""
    groups = config.rollout.topology.groups.items()
    return {name: group for name, group in groups if group.model == model and group.worker_type != "placeholder"}


def model_path(config: Config, model: str) -> str:
    """The checkpoint that a model's engines load: a group's path, the model's, or the trained one."""
    given = [group.path for group in groups_of(config, model).values() if group.path is not None]
    path = given[0] if given else served_models(config)[model].path
    return str(checkpoint_folder(config) if path is None else Path(path).expanduser().resolve())


def takes_updates(config: Config, model: str) -> bool:
    """Whether a model gets the trainer's weights; unless said, only the one that serves the trained checkpoint."""
    wanted = served_models(config)[model].update_weights
    return model_path(config, model) == str(checkpoint_folder(config)) if wanted is None else wanted


def layered(values: Layered, device: str, kind: str) -> dict[str, Any]:
    """One server's values: common, then the device's, then the worker type's."""
    by_name = asdict(values)
    return {**by_name["common"], **by_name[device], **by_name[kind]}


def server_args(config: Config, device: str, group: EngineGroup) -> dict[str, Any]:
    """SGLang ServerArgs of a group's engines, but for addresses and ports."""
    args = layered(config.rollout.server_args, device, group.worker_type) | KIND_ARGS.get(group.worker_type, {})
    args |= {"tp_size": group.tp, "pp_size": group.pp, "dp_size": group.dp}
    encoded = any(other.worker_type == "encoder" for other in groups_of(config, group.model).values())
    if encoded and group.worker_type in TAKES_ENCODERS:
        args["language_only"] = True
    return {**args, **group.overrides}


def wants_encoders(args: dict[str, Any]) -> bool:
    """Whether an engine takes the URLs of its model's encoders, rather than a user's own or none."""
    return bool(args.get("language_only")) and not args.get("encoder_urls")


def routing(config: Config) -> str:
    """router or direct: who picks the engine of the actor's requests."""
    split = any(group.worker_type in SPLIT for group in groups_of(config, ACTOR).values())
    asked = config.rollout.routing
    return ("router" if split else "direct") if asked == "auto" else asked


def engines(site: Site) -> Iterator[Actor]:
    """One actor for each engine, or for each node of an engine that spans several; external ones included."""
    for name, group in site.config.rollout.topology.groups.items():
        if group.urls is not None:
            yield from _external(site, name, group)
        elif group.worker_type != "placeholder":
            args = server_args(site.config, site.device, group)
            for index, seats in enumerate(site.placement.engines[name]):
                yield from _engine(site, name, f"{name}-{index}", group, args, seats)


def routers(site: Site) -> Iterator[Actor]:
    """One router for each served model that has engines which generate; none where the rollout asks them directly."""
    direct = [ACTOR] if routing(site.config) == "direct" else []
    for model in (name for name in served_models(site.config) if name not in direct):
        if any(group.worker_type in GENERATES for group in groups_of(site.config, model).values()):
            args = dict(site.config.rollout.router_args)
            spec = _server(site, f"router-{model}", "router", 0, model, args) | {"model": model}
            args |= {"prometheus_port": site.ports.take(0)}
            target, own = component(site.config.rollout.server)
            needs = tuple(f"{model}/{name}" for name in ROUTER_NEEDS)
            yield Actor(
                name=f"router-{model}", kind="router", group=f"router-{model}", component=target,
                resources=Resources(cpu=1), needs=needs, provides=("router_url",), args=own | spec,
            )  # fmt: skip


def _engine(
    site: Site, group_name: str, name: str, group: EngineGroup, args: dict[str, Any], seats: tuple[Seat, ...]
) -> Iterator[Actor]:
    own_args = dict(args)
    if len(seats) > 1:
        start = f"{site.address(seats[0].node)}:{site.ports.take(seats[0].node)}"
        own_args |= {"nnodes": len(seats), "dist_init_addr": start}
    if port := OWN_PORT.get(group.worker_type):
        own_args.setdefault(port, site.ports.take(seats[0].node))
    if own_args.get("language_only"):
        own_args.setdefault("encoder_bootstrap_port", site.ports.take(seats[0].node))
    target, own = component(site.config.rollout.server)
    env = _environment(site, group.worker_type)
    for rank, seat in enumerate(seats):
        here = f"{name}-node{rank}" if rank else name
        kind = "follower" if rank else group.worker_type
        ranked = own_args | ({"node_rank": rank} if len(seats) > 1 else {})
        spec = _server(site, here, kind, seat.node, group.model, ranked, env)
        sync = None if rank else _weight_sync(site, name, group)
        yield Actor(
            name=here, kind=kind, group=group_name, component=target,
            node=seat.node, gpus=seat.gpus,
            resources=Resources(cpu=max(1, site.config.rollout.server_threads), gpu=site.gpu_share(seat)),
            needs=_needs(group, own_args), provides=() if rank else _provides(site.config, group),
            args=own | spec | {"model": group.model, "weight_sync": sync, "shared_key": _shared_key(group)},
        )  # fmt: skip


def _needs(group: EngineGroup, args: dict[str, Any]) -> tuple[str, ...]:
    takes = wants_encoders(args) and group.worker_type in TAKES_ENCODERS
    return ("hf_checkpoint", *((f"{group.model}/encoder_url",) if takes else ()))


def _provides(config: Config, group: EngineGroup) -> tuple[str, ...]:
    sink = group.worker_type in TAKES_WEIGHTS and takes_updates(config, group.model)
    return (f"{group.model}/{PROVIDES[group.worker_type]}", *(("weight_sink",) if sink else ()))


def _weight_sync(site: Site, name: str, group: EngineGroup) -> dict[str, Any] | None:
    """How the trainer's rank 0, which listens on node 0, hands weights over; by disk where its ranks are replicas or
    pipeline stages, which SGLang does not broadcast to."""
    if "weight_sink" not in _provides(site.config, group):
        return None
    limit = {"timeout_s": site.config.trainer.timeout_s}
    if group.dp > 1 or group.pp > 1:
        return {"via": "disk", "folder": f"weights/{name}", **limit}
    return {
        "via": "broadcast", "host": site.address(0), "port": site.ports.take(0), "backend": BACKEND[site.device],
        "group": f"weights-{name}", **limit,
    }  # fmt: skip


def _shared_key(group: EngineGroup) -> str | None:
    """A router of split engines hands its clients' token on, so those engines have one token in common."""
    return f"keys/{group.model}" if group.worker_type in SPLIT else None


def _environment(site: Site, kind: str) -> dict[str, str]:
    rollout = site.config.rollout
    own = {EPD_ENV: ",".join(rollout.epd_architectures), BANNED_ENV: ",".join(map(str, site.banned_tokens))}
    return {name: str(value) for name, value in (layered(rollout.server_env, site.device, kind) | own).items()}


def _server(
    site: Site, name: str, kind: str, node: int, model: str, args: dict[str, Any], env: dict[str, str] | None = None
) -> dict[str, Any]:
    threads = site.config.rollout.server_threads
    return {
        "name": name, "kind": kind, "host": site.address(node), "port": site.ports.take(node),
        "model_path": model_path(site.config, model), "server_args": args,
        "env": ({"OMP_NUM_THREADS": str(threads)} if threads else {}) | (env or {}), "log": f"logs/{name}.log",
        "start_timeout_s": site.config.cluster.start_timeout_s,
    }  # fmt: skip


def _external(site: Site, group_name: str, group: EngineGroup) -> Iterator[Actor]:
    target, own = component(site.config.rollout.external)
    for index, url in enumerate(group.urls or ()):
        name = f"{group_name}-{index}"
        args = {
            "name": name, "group": group_name, "kind": group.worker_type, "model": group.model, "url": url.rstrip("/"),
            "key_file": group.key_file, "admin_key_file": group.admin_key_file,
            "model_path": model_path(site.config, group.model),
            "expected": {"tp_size": group.tp, "pp_size": group.pp, "dp_size": group.dp, **group.overrides},
            "weight_sync": _weight_sync(site, name, group),
            "timeout_s": site.config.cluster.start_timeout_s,
        }  # fmt: skip
        yield Actor(
            name=name, kind="external", group=group_name, component=target, resources=Resources(cpu=0),
            needs=("hf_checkpoint",), provides=_provides(site.config, group), args=own | args,
        )  # fmt: skip


def placeholders(site: Site) -> Iterator[tuple[str, Seat]]:
    """(name, seat) of everything that is only reserved."""
    for name, group in site.config.rollout.topology.groups.items():
        if group.worker_type == "placeholder":
            for index, seats in enumerate(site.placement.engines.get(name, ())):
                yield from ((f"{name}-{index}", seat) for seat in seats)
