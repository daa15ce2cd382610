"""Typed config -> LaunchPlan: a pure function of the config, the machine and a block of ports."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from slime_launch import __version__
from slime_launch.machine import Machine
from slime_launch.paths import COMPONENTS
from slime_launch.plan import Actor, LaunchPlan, Resources, assign_phases, draw_edges
from slime_launch.schema import Config, EngineGroup, Layered

HOST = "127.0.0.1"
EPD_ENV = "SLIME_LAUNCH_EPD_ARCHITECTURES"
BANNED_ENV = "SLIME_LAUNCH_BANNED_TOKENS"
BACKEND = {"cpu": "gloo", "cuda": "nccl"}
NEEDS = {
    "checkpoint": (),
    "encoder": ("hf_checkpoint",),
    "regular": ("hf_checkpoint", "encoder_url"),
    "router": ("engine_url",),
    "trainer": ("hf_checkpoint", "weight_sink"),
    "rollout": ("hf_checkpoint", "router_url"),
}
PROVIDES = {
    "checkpoint": ("hf_checkpoint",),
    "encoder": ("encoder_url",),
    "regular": ("engine_url", "weight_sink"),
    "router": ("router_url",),
    "trainer": (),
    "rollout": (),
}


def choose_device(config: Config, machine: Machine) -> str:
    """cpu or cuda: what the config asks for, or what the machine has."""
    auto = "cuda" if machine.gpus else "cpu"
    return auto if config.cluster.device == "auto" else config.cluster.device


def checkpoint_folder(config: Config) -> Path:
    """Where the weights lie.

    The user's folder, or a cache folder named by everything that the tiny one is made from.
    """
    if config.model.hf_checkpoint is not None:
        return Path(config.model.hf_checkpoint).expanduser().resolve()
    made_from = json.dumps([__version__, config.model.tiny], sort_keys=True, default=str)
    digest = hashlib.sha256(made_from.encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "slime_launch" / f"{config.model.family}-{digest}"


def hf_config_file(config: Config) -> Path:
    """The config.json to plan with."""
    if config.model.hf_config is not None:
        return Path(config.model.hf_config).expanduser()
    if config.model.hf_checkpoint is not None:
        return checkpoint_folder(config) / "config.json"
    return COMPONENTS / "models" / config.model.family / "configs" / "tiny.json"


def num_ports(config: Config) -> int:
    """Ports that the plan hands out: Ray, the trainers' rendezvous, the router, two for each engine."""
    engines = sum(group.num_engines for group in config.rollout.topology.groups.values())
    return 3 + 2 * engines


@dataclass
class _Context:
    config: Config
    device: str
    checkpoint: str
    ports: Iterator[int]
    banned_tokens: list[int]


def resolve(config: Config, machine: Machine, ports: list[int], hf: Mapping[str, Any]) -> LaunchPlan:
    """Turn a checked config into the actor graph.

    ports: at least ``num_ports(config)`` loopback ports, handed out in plan order. hf: the model's config.json.
    """
    device = choose_device(config, machine)
    context = _Context(config, device, str(checkpoint_folder(config)), iter(ports), media_tokens(hf))
    ray_port = next(context.ports)
    unordered = [*_checkpoint(context), *_engines(context), _router(context), *_trainers(context), _rollout(context)]
    provided = {name for actor in unordered for name in actor.provides}
    edges = draw_edges(unordered)
    phases = assign_phases(unordered, edges)
    actors = [
        replace(actor, phase=phases[actor.name], needs=tuple(name for name in actor.needs if name in provided))
        for actor in unordered
    ]
    return LaunchPlan(
        name=config.name,
        platform=device,
        ray_port=ray_port,
        edges=tuple(edges),
        actors=tuple(sorted(actors, key=lambda actor: actor.phase)),
    )


def media_tokens(hf: Mapping[str, Any]) -> list[int]:
    """Ids of the placeholders and brackets of images, video and audio: never sampled, no medium stands behind one."""
    names = re.compile(r"^(image|video|audio|vision)_(.*_)?token_(id|index)$")
    return sorted({value for name, value in hf.items() if names.match(name) and isinstance(value, int)})


def _actor(kind: str, name: str, component: str, resources: Resources, args: dict[str, Any]) -> Actor:
    return Actor(
        name=name, kind=kind, component=component, resources=resources, args=args,
        needs=NEEDS[kind], provides=PROVIDES[kind],
    )  # fmt: skip


def _open(node: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(target, the other entries) of a component node."""
    return node["_target_"], {key: value for key, value in node.items() if key != "_target_"}


def _checkpoint(c: _Context) -> Iterator[Actor]:
    if c.config.model.hf_checkpoint is None:
        target, args = _open(c.config.model.tiny)
        resources = Resources(cpu=int(args.get("threads", 1)))
        yield _actor("checkpoint", "checkpoint", target, resources, {"folder": c.checkpoint, **args})


def _engines(c: _Context) -> Iterator[Actor]:
    groups = c.config.rollout.topology.groups
    encoded = any(group.worker_type == "encoder" for group in groups.values())
    for name, group in groups.items():
        for index in range(group.num_engines):
            yield _engine(c, f"{name}-{index}", group, encoded)


def layered(values: Layered, device: str, kind: str) -> dict[str, Any]:
    """One server's values: common, then the device's, then the kind's."""
    by_name = asdict(values)
    return {**by_name["common"], **by_name[device], **by_name[kind]}


def _engine(c: _Context, name: str, group: EngineGroup, encoded: bool) -> Actor:
    rollout, kind = c.config.rollout, group.worker_type
    port, second = next(c.ports), next(c.ports)
    args = layered(rollout.server_args, c.device, kind) | {"tp_size": group.tp, "random_seed": c.config.seed}
    weight_sync = None
    if kind == "regular":
        weight_sync = {
            "port": second,
            "backend": BACKEND[c.device],
            "group": f"weights-{name}",
            "timeout_s": c.config.trainer.timeout_s,
        }
        args |= {"language_only": True} if encoded else {}
    own_env = {EPD_ENV: ",".join(rollout.epd_architectures), BANNED_ENV: ",".join(map(str, c.banned_tokens))}
    env = layered(rollout.server_env, c.device, kind) | own_env
    server = _server(c, name, kind, port, {**args, **group.overrides}, {key: str(value) for key, value in env.items()})
    gpus = group.gpus_per_engine if c.device == "cuda" else 0.0
    resources = Resources(cpu=max(1, rollout.server_threads), gpu=gpus)
    target, own = _open(rollout.server)
    return _actor(kind, name, target, resources, own | server | {"weight_sync": weight_sync})


def _server(c: _Context, name: str, kind: str, port: int, args: dict[str, Any], env: dict[str, str]) -> dict[str, Any]:
    threads = {"OMP_NUM_THREADS": str(c.config.rollout.server_threads)} if c.config.rollout.server_threads else {}
    return {
        "name": name, "kind": kind, "host": HOST, "port": port, "model_path": c.checkpoint, "server_args": args,
        "env": threads | env, "log": f"logs/{name}.log", "start_timeout_s": c.config.cluster.start_timeout_s,
    }  # fmt: skip


def _router(c: _Context) -> Actor:
    args = _server(c, "router", "router", next(c.ports), dict(c.config.rollout.router_args), {})
    target, own = _open(c.config.rollout.server)
    return _actor("router", "router", target, Resources(cpu=1), own | args)


def _trainers(c: _Context) -> Iterator[Actor]:
    trainer, model = c.config.trainer, c.config.model
    world_size = trainer.parallel.tp * trainer.parallel.pp * trainer.parallel.dp
    rendezvous = f"tcp://{HOST}:{next(c.ports)}"
    shared = {
        "hf_checkpoint": c.checkpoint, "family": model.family, "spec": model.spec, "freeze": model.freeze,
        "transformer": model.transformer, "tp": trainer.parallel.tp, "pp": trainer.parallel.pp,
        "world_size": world_size, "rendezvous": rendezvous, "device": c.device, "optim": asdict(trainer.optim),
        "num_steps": trainer.num_steps, "algorithm": c.config.algorithm.policy,
        "micro_batch_size": trainer.micro_batch_size,
        "num_minibatches": trainer.num_minibatches, "temperature": c.config.rollout.temperature, "seed": c.config.seed,
        "banned_tokens": c.banned_tokens,
        "timeout_s": trainer.timeout_s, "threads": trainer.threads, "max_logprob_gap": trainer.max_logprob_gap,
        "bucket_mb": trainer.bucket_mb,
    }  # fmt: skip
    resources = Resources(cpu=trainer.threads, gpu=trainer.gpus_per_rank if c.device == "cuda" else 0.0)
    target, own = _open(trainer.worker)
    for rank in range(world_size):
        yield _actor("trainer", f"trainer-{rank}", target, resources, own | shared | {"rank": rank})


def _rollout(c: _Context) -> Actor:
    rollout = c.config.rollout
    engines = sum(g.num_engines for g in rollout.topology.groups.values() if g.worker_type == "regular")
    target, own = _open(rollout.worker)
    args = {
        "hf_checkpoint": c.checkpoint, "data": c.config.data, "score": c.config.reward.score,
        "reward": c.config.reward.mix | {"parts": c.config.reward.parts},
        "num_prompts": rollout.num_prompts, "group_size": rollout.group_size, "eval_samples": rollout.eval_samples,
        "sampling": {
            "temperature": rollout.temperature, "top_p": rollout.top_p, "max_new_tokens": rollout.max_new_tokens,
        },
        "max_concurrency": rollout.max_concurrency * engines, "request_timeout_s": rollout.request_timeout_s,
        "seed": c.config.seed,
    }  # fmt: skip
    return _actor("rollout", "rollout", target, Resources(cpu=1), own | args)
