"""Typed config -> LaunchPlan: a pure function of the config, the machine and a block of ports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from slime_launch.data_files import absolute
from slime_launch.estimate import estimates
from slime_launch.machine import Machine
from slime_launch.model_files import checkpoint_folder, family_of, makes_checkpoint, media_tokens
from slime_launch.placement import place, world_size
from slime_launch.plan import Actor, ClusterPlan, LaunchPlan, Placeholder, Resources, assign_phases, draw_edges
from slime_launch.schema import ACTOR, Config
from slime_launch.schema.rollout import EvalSet
from slime_launch.topology import (
    AFFINE,
    ROUTER_NEEDS,
    Ports,
    Site,
    component,
    engines,
    placeholders,
    routers,
    routing,
)  # fmt: skip


def gpus_per_node(config: Config, machine: Machine) -> int:
    """GPUs of a node: what the config says, or what this machine has; 0 on CPU."""
    declared = config.cluster.gpus_per_node
    return 0 if choose_device(config, machine) == "cpu" else machine.gpus if declared is None else declared


def choose_device(config: Config, machine: Machine) -> str:
    """cpu or cuda: what the config asks for, or what the machines have."""
    declared = config.cluster.gpus_per_node
    auto = "cuda" if (machine.gpus if declared is None else declared) else "cpu"
    return auto if config.cluster.device == "auto" else config.cluster.device


def choose_precision(config: Config, device: str) -> str:
    """float32 or bfloat16, of the trainer's weights and activations."""
    auto = "bfloat16" if device == "cuda" else "float32"
    return auto if config.trainer.precision == "auto" else config.trainer.precision


def resolve(config: Config, machine: Machine, base_port: int, hf: Mapping[str, Any]) -> LaunchPlan:
    """Turn a checked config into the actor graph.

    base_port: first of the block that every node hands its ports out from; the plan says how many it took.
    hf: the model's config.json.
    """
    config = _with_absolute_data(config)
    placement = place(config, gpus_per_node(config, machine))
    device = choose_device(config, machine)
    site = Site(config, device, str(checkpoint_folder(config)), Ports(base_port), placement, media_tokens(hf))
    ray_port = site.ports.take(0)
    unordered = [
        *_checkpoint(site),
        *engines(site),
        *routers(site),
        *_trainers(site, family_of(config, hf)),
        _rollout(site),
    ]
    provided = {name for actor in unordered for name in actor.provides}
    edges = draw_edges(unordered)
    phases = assign_phases([actor.group for actor in unordered], edges)
    memory = estimates(config, device, hf, machine, unordered)
    actors = (
        replace(
            actor, phase=phases[actor.group], needs=tuple(name for name in actor.needs if name in provided),
            memory_mb=memory[actor.group, actor.kind],
        )
        for actor in unordered
    )  # fmt: skip
    cluster = ClusterPlan(
        backend=config.cluster.backend, loopback=config.cluster.loopback, base_port=base_port,
        num_ports=site.ports.width, ray_port=ray_port, gpus=tuple(placement.gpus_by_node().values()),
    )  # fmt: skip
    return LaunchPlan(
        name=config.name,
        platform=device,
        cluster=cluster,
        edges=tuple(edges),
        actors=tuple(sorted(actors, key=lambda actor: actor.phase)),
        placeholders=tuple(Placeholder(name=name, node=s.node, gpus=s.gpus) for name, s in placeholders(site)),
    )


def _with_absolute_data(config: Config) -> Config:
    """The same config; actors find the files of its data nodes from any folder."""
    rollout = config.rollout
    eval_sets = {name: replace(held, data=absolute(held.data)) for name, held in rollout.eval_sets.items()}
    return replace(
        config, data=absolute(config.data), rollout=replace(rollout, eval_sets=eval_sets, media=absolute(rollout.media))
    )


def _checkpoint(site: Site) -> Iterator[Actor]:
    if makes_checkpoint(site.config):
        target, args = component(site.config.model.tiny)
        yield Actor(
            name="checkpoint", kind="checkpoint", group="checkpoint", component=target,
            resources=Resources(cpu=int(args.get("threads", 1))), needs=(), provides=("hf_checkpoint",),
            args={"folder": site.checkpoint, **absolute(args)},
        )  # fmt: skip


def _trainers(site: Site, family: str) -> Iterator[Actor]:
    trainer, model = site.config.trainer, site.config.model
    ranks = world_size(site.config)
    shared = {
        "hf_checkpoint": site.checkpoint, "family": family, "spec": model.spec, "freeze": model.freeze,
        "train_only": model.train_only, "transformer": model.transformer,
        **{name: size for name, size in asdict(trainer.parallel).items() if name != "dp"},
        "precision": choose_precision(site.config, site.device),
        "world_size": ranks, "rendezvous": f"tcp://{site.address(0)}:{site.ports.take(0)}", "device": site.device,
        "optim": asdict(trainer.optim), "num_steps": trainer.num_steps, "algorithm": site.config.algorithm.policy,
        "micro_batch_size": trainer.micro_batch_size, "max_tokens": trainer.max_tokens,
        "num_minibatches": trainer.num_minibatches, "recompute": trainer.recompute,
        "logprob_chunk": trainer.logprob_chunk,
        "temperature": site.config.rollout.temperature, "seed": site.config.seed,
        "banned_tokens": site.banned_tokens, "timeout_s": trainer.timeout_s, "threads": trainer.threads,
        "max_logprob_gap": trainer.max_logprob_gap, "bucket_mb": trainer.bucket_mb,
    }  # fmt: skip
    target, own = component(trainer.worker)
    for rank, seat in enumerate(site.placement.trainer):
        yield Actor(
            name=f"trainer-{rank}", kind="trainer", group="trainer", component=target, node=seat.node, gpus=seat.gpus,
            resources=Resources(cpu=trainer.threads, gpu=site.gpu_share(seat)),
            # rank 0 hands the weights over for all
            needs=("hf_checkpoint", *(() if rank else ("weight_sink",))), provides=(),
            args=own | shared | {"rank": rank},
        )  # fmt: skip


def _rollout(site: Site) -> Actor:
    config, rollout = site.config, site.config.rollout
    target, own = component(rollout.worker)
    args = {
        "hf_checkpoint": site.checkpoint, "data": config.data, "score": config.reward.score,
        "reward": config.reward.mix | {"parts": config.reward.parts},
        "num_prompts": rollout.num_prompts, "group_size": rollout.group_size, "eval_samples": rollout.eval_samples,
        "sampling": rollout.sampling | {
            "temperature": rollout.temperature, "top_p": rollout.top_p, "max_new_tokens": rollout.max_new_tokens,
        },
        "generate": rollout.generate, "media": rollout.media, "routing": _routing(config),
        "oversample": rollout.oversample, "draw_limit": rollout.draw_limit,
        "keep_when_insufficient": rollout.keep_when_insufficient, "compares_group": config.algorithm.compares_group,
        "filters": rollout.filters, "partial": asdict(rollout.partial), "pass_at": rollout.pass_at,
        "eval_sets": {name: _eval_set(config, one) for name, one in rollout.eval_sets.items()},
        "max_concurrency": rollout.max_concurrency,
        "max_refused_answers": rollout.max_refused_answers, "request_timeout_s": rollout.request_timeout_s,
        "seed": config.seed,
    }  # fmt: skip
    return Actor(
        name="rollout", kind="rollout", group="rollout", component=target, resources=Resources(cpu=1),
        needs=("hf_checkpoint", "router_url", *(f"{ACTOR}/{name}" for name in ROUTER_NEEDS)), provides=(),
        args=own | args,
    )  # fmt: skip


def _eval_set(config: Config, settings: EvalSet) -> dict[str, Any]:
    """A held-out set's settings, its own reward as (node, score), its endpoint where it has one."""
    own = settings.reward
    reward = {"node": own.get("mix", config.reward.mix) | {"parts": own.get("parts", {})}, "score": own.get("score")}
    endpoint = asdict(settings.endpoint) if settings.endpoint.base_url is not None else None
    if endpoint and endpoint["key_file"] is not None:
        endpoint["key_file"] = str(Path(endpoint["key_file"]).expanduser().absolute())
    return asdict(settings) | {"reward": reward if own else None, "endpoint": endpoint}


def _routing(config: Config) -> dict[str, Any]:
    """How the rollout finds its engines: by router or directly; affinity: it names each conversation to the router."""
    by = routing(config)
    return {"by": by, "affinity": by == "router" and config.rollout.router_args.get("policy") == AFFINE}
