"""Rules about server arguments: they exist in the installed SGLang, have its types, and leave the launcher's alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from slime_launch.annotations import fault
from slime_launch.checks.facts import Facts, Rule, group_key
from slime_launch.errors import Problem
from slime_launch.schema import Layered
from slime_launch.schema.build import nearest
from slime_launch.sglang_source import server_arguments

LAYERS = tuple(field.name for field in fields(Layered))
RESERVED_ARGS = {
    **dict.fromkeys(
        ("host", "port", "api_key", "admin_api_key", "prometheus_host", "prometheus_port", "dist_init_addr",
         "nccl_port", "nnodes", "node_rank", "base_gpu_id"),
        "remove it",
    ),
    **dict.fromkeys(("trust_remote_code", "enable_custom_logit_processor"), "it would run code: remove it"),
    "model_path": "set path of the group or of its model in rollout.topology.models",
    "tp_size": "set tp of the group", "pp_size": "set pp of the group", "dp_size": "set dp of the group",
    "encoder_only": "set worker_type of the group", "disaggregation_mode": "set worker_type of the group",
}  # fmt: skip
RESERVED_ENV = ("LD_", "PYTHON", "SLIME_LAUNCH_", "SGLANG_HOST_IP", "GLOO_", "CUDA_VISIBLE_DEVICES")


def _server_arguments(f: Facts) -> dict[str, dict[str, Any]]:
    """Every place where ServerArgs are given, by its key."""
    layers = {f"rollout.server_args.{name}": getattr(f.config.rollout.server_args, name) for name in LAYERS}
    return layers | {group_key(name, "overrides"): group.overrides for name, group in f.groups.items()}


def server_arguments_exist(f: Facts) -> Iterator[Problem]:
    """Server arguments are fields of the installed SGLang's ServerArgs, and have their types."""
    known = server_arguments()
    for key, args in _server_arguments(f).items():
        for name, value in args.items() if known else ():
            if name not in known:
                mend = nearest(name, known) if len(name) > 2 else "see SGLang's ServerArgs"
                yield Problem(f"{key}.{name}", value, "no such SGLang server argument", mend)
            elif reason := fault(value, known[name]):
                yield Problem(f"{key}.{name}", value, reason, "see SGLang's ServerArgs")


def servers_stay_ours(f: Facts) -> Iterator[Problem]:
    """Addresses, keys and code loading of the servers are the launcher's; their environment sets no loader."""
    rollout = f.config.rollout
    given = _server_arguments(f) | {"rollout.router_args": rollout.router_args}
    for key, values in given.items():
        for name in sorted(values.keys() & RESERVED_ARGS.keys()):
            yield Problem(f"{key}.{name}", values[name], "set by the launcher for each server", RESERVED_ARGS[name])
    for layer in LAYERS:
        for name, value in getattr(rollout.server_env, layer).items():
            if name.startswith(RESERVED_ENV):
                yield Problem(f"rollout.server_env.{layer}.{name}", value, "changes what a server loads", "remove it")


RULES: tuple[Rule, ...] = (server_arguments_exist, servers_stay_ours)
