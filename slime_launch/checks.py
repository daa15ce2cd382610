"""What every run must satisfy before anything starts.

Each rule yields all its problems; each problem names its key and the mend.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from slime_launch.errors import Problem
from slime_launch.hf_folder import folder_faults
from slime_launch.machine import Machine, epd_architectures, port_is_free, server_argument_names
from slime_launch.paths import COMPONENTS
from slime_launch.resolve import checkpoint_folder, choose_device, hf_config_file, num_ports
from slime_launch.schema import Config, EngineGroup
from slime_launch.schema.build import nearest

BUILT_MODES = ("run", "plan")
LAYERS = ("common", "cpu", "cuda", "regular", "encoder")
RESERVED_ARGS = frozenset(
    [
        "host",
        "port",
        "api_key",
        "admin_api_key",
        "model_path",
        "trust_remote_code",
        "encoder_only",
        "prometheus_host",
        "dist_init_addr",
        "nccl_port",
        "enable_custom_logit_processor",
    ]
)
RESERVED_ENV = ("LD_", "PYTHON", "SLIME_LAUNCH_", "SGLANG_HOST_IP", "GLOO_")


@dataclass(frozen=True)
class Facts:
    """What rules look at: the config, the machine and the model's config.json (empty when it cannot be read)."""

    config: Config
    machine: Machine
    hf: dict[str, Any]

    @property
    def text(self) -> dict[str, Any]:
        """The language model's part of config.json."""
        text = self.hf.get("text_config")
        return text if isinstance(text, dict) else self.hf

    def groups(self, worker_type: str) -> dict[str, EngineGroup]:
        """Engine groups of one worker type, by name."""
        return {n: g for n, g in self.config.rollout.topology.groups.items() if g.worker_type == worker_type}


def problems(config: Config, machine: Machine) -> list[Problem]:
    """Everything wrong with a typed config on this machine; empty when it may run."""
    hf, found = read_hf_config(config)
    facts = Facts(config, machine, hf)
    return found + [problem for rule in RULES for problem in rule(facts)]


def read_hf_config(config: Config) -> tuple[dict[str, Any], list[Problem]]:
    """(the model's config.json, []) or ({}, what is wrong with it)."""
    file = hf_config_file(config)
    key = "model.hf_config" if config.model.hf_config else "model.hf_checkpoint"
    value = config.model.hf_config or config.model.hf_checkpoint or config.model.family
    if config.model.hf_checkpoint is None and config.model.hf_config is None and not file.is_file():
        families = [path.name for path in (COMPONENTS / "models").iterdir() if (path / "configs").is_dir()]
        return {}, [Problem("model.family", value, "no such family", nearest(str(value), families))]
    if not file.is_file():
        return {}, [Problem(key, value, f"no {file}", "name a Hugging Face checkpoint folder that has a config.json")]
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        return {}, [Problem(key, value, f"{file} is not readable JSON ({error})", "mend or replace the file")]
    if not isinstance(content, dict) or not content.get("architectures"):
        return {}, [
            Problem(key, value, f"{file} names no architectures", "use the config.json that belongs to the weights")
        ]
    return content, []


def mode_is_built(f: Facts) -> Iterator[Problem]:
    """Modes and resuming that are planned but not there yet are refused as such."""
    if f.config.mode not in BUILT_MODES:
        yield Problem("mode", f.config.mode, "not built yet", f"use one of {', '.join(BUILT_MODES)}")
    if f.config.resume is not None:
        yield Problem("resume", f.config.resume, "resuming is not built yet", "leave resume=null")


def nodes_have_targets(f: Facts) -> Iterator[Problem]:
    """Every component node names its component."""
    nodes = {
        "model.spec": f.config.model.spec, "algorithm.policy": f.config.algorithm.policy, "data": f.config.data,
        "rollout.worker": f.config.rollout.worker, "rollout.server": f.config.rollout.server,
        "trainer.worker": f.config.trainer.worker, "driver.loop": f.config.driver.loop,
        "reward.mix": f.config.reward.mix, **{f"reward.parts.{n}": v for n, v in f.config.reward.parts.items()},
    }  # fmt: skip
    if f.config.model.hf_checkpoint is None:
        nodes["model.tiny"] = f.config.model.tiny
    for key, node in nodes.items():
        if "_target_" not in node:
            yield Problem(
                key, node or "null", "names no component", f"set {key}._target_ or choose an option of its group"
            )


def reward_is_sound(f: Facts) -> Iterator[Problem]:
    """Parts have positive weights; the reported score is one of them."""
    parts = f.config.reward.parts
    if not parts:
        yield Problem("reward.parts", "{}", "no rewards", "choose an option of the reward group")
    for name, node in parts.items():
        weight = node.get("weight")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            yield Problem(f"reward.parts.{name}.weight", weight, "not a weight above 0", "give a number, e.g. 1.0")
    if f.config.reward.score is not None and f.config.reward.score not in parts:
        yield Problem("reward.score", f.config.reward.score, "no such part", nearest(f.config.reward.score, parts))


def checkpoint_is_whole(f: Facts) -> Iterator[Problem]:
    """A user's checkpoint folder has weights and a tokenizer, and nothing that would run code when loaded."""
    given = f.config.model.hf_checkpoint
    if given is None:
        return
    for reason, mend in folder_faults(checkpoint_folder(f.config)):
        yield Problem("model.hf_checkpoint", given, reason, mend)
    if "auto_map" in f.hf:
        reason = "config.json has auto_map, which names code to run"
        yield Problem("model.hf_checkpoint", given, reason, "remove the entry")


def groups_can_be_compared(f: Facts) -> Iterator[Problem]:
    """Group-normalised advantages of one sample are always zero."""
    if f.config.algorithm.compares_group and f.config.rollout.group_size < 2:
        yield Problem(
            "rollout.group_size",
            f.config.rollout.group_size,
            "advantages compare the samples of one prompt, and one sample has none to compare with",
            "give 2 or more",
        )


def batch_divides(f: Facts) -> Iterator[Problem]:
    """Samples divide over data-parallel ranks and optimizer steps."""
    samples = f.config.rollout.num_prompts * f.config.rollout.group_size
    parts = f.config.trainer.num_minibatches * f.config.trainer.parallel.dp
    if samples % parts:
        yield Problem(
            "trainer.num_minibatches",
            f.config.trainer.num_minibatches,
            f"{samples} samples a step do not divide by num_minibatches x parallel.dp = {parts}",
            "change num_prompts, group_size or one of them",
        )


def tensor_parallel_divides(f: Facts) -> Iterator[Problem]:
    """Heads, key-value heads and the MLP divide by the trainer's and each engine group's tensor-parallel size."""
    sizes = {"trainer.parallel.tp": f.config.trainer.parallel.tp}
    sizes |= {
        f"rollout.topology.groups.{name}.tp": group.tp for name, group in f.config.rollout.topology.groups.items()
    }
    for key, tp in sizes.items():
        for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
            count = f.text.get(name)
            if isinstance(count, int) and count % tp:
                yield Problem(key, tp, f"does not divide {name}={count} of the model", f"give a divisor of {count}")


def pipeline_divides(f: Facts) -> Iterator[Problem]:
    """Layers divide over pipeline stages."""
    layers, pp = f.text.get("num_hidden_layers"), f.config.trainer.parallel.pp
    if isinstance(layers, int) and layers % pp:
        yield Problem(
            "trainer.parallel.pp",
            pp,
            f"does not divide num_hidden_layers={layers} of the model",
            f"give a divisor of {layers}",
        )


def topology_generates(f: Facts) -> Iterator[Problem]:
    """There is an engine to generate with."""
    if not f.groups("regular"):
        yield Problem(
            "rollout.topology.groups",
            list(f.config.rollout.topology.groups),
            "no regular engines, so nothing generates",
            "choose an option of rollout/topology, e.g. rollout/topology=single",
        )


def encoders_fit_the_model(f: Facts) -> Iterator[Problem]:
    """Encoder-only servers need an architecture that can be split, and towers that do not train."""
    for name in f.groups("encoder"):
        key = f"rollout.topology.groups.{name}.worker_type"
        accepted = epd_architectures() | set(f.config.rollout.epd_architectures)
        for architecture in f.hf.get("architectures", ()):
            if architecture not in accepted:
                yield Problem(
                    key,
                    "encoder",
                    f"SGLang cannot split {architecture} into encoder and language model",
                    "use rollout/topology=single, or a model that has an encoder",
                )
        if not f.config.model.encoders:
            reason = "model.encoders names no encoder, so nothing says which parameters the server holds"
            yield Problem(key, "encoder", reason, "name them, or use rollout/topology=single")
        for encoder, prefix in f.config.model.encoders.items():
            if not any(_matches(pattern, prefix + "x.weight") for pattern in f.config.model.freeze):
                yield Problem(
                    "model.freeze",
                    f.config.model.freeze,
                    f"the {encoder} encoder ({prefix}) would train, "
                    "and an encoder-only server has no way to take new weights",
                    f"add '^{re.escape(prefix)}' to model.freeze, or use rollout/topology=single",
                )


def _matches(pattern: str, prefix: str) -> bool:
    try:
        return re.search(pattern, prefix) is not None
    except re.error:
        return False


def freeze_patterns_compile(f: Facts) -> Iterator[Problem]:
    """Freeze patterns are regular expressions."""
    for pattern in f.config.model.freeze:
        try:
            re.compile(pattern)
        except re.error as error:
            yield Problem(
                "model.freeze", pattern, f"not a regular expression ({error})", "escape its special characters"
            )


def _server_arguments(f: Facts) -> dict[str, dict[str, Any]]:
    """Every place where ServerArgs are given, by its key."""
    rollout = f.config.rollout
    layers = {f"rollout.server_args.{name}": getattr(rollout.server_args, name) for name in LAYERS}
    groups = {f"rollout.topology.groups.{n}.overrides": g.overrides for n, g in rollout.topology.groups.items()}
    return layers | groups


def server_arguments_exist(f: Facts) -> Iterator[Problem]:
    """Server arguments are fields of the installed SGLang's ServerArgs."""
    known = server_argument_names()
    for key, args in _server_arguments(f).items():
        for name, value in args.items():
            if known and name not in known:
                yield Problem(
                    f"{key}.{name}",
                    value,
                    "no such SGLang server argument",
                    nearest(name, known) if len(name) > 2 else "see SGLang's ServerArgs",
                )


def servers_stay_ours(f: Facts) -> Iterator[Problem]:
    """Addresses, keys and code loading of the servers are the launcher's; their environment sets no loader."""
    rollout = f.config.rollout
    given = _server_arguments(f) | {"rollout.router_args": rollout.router_args}
    for key, values in given.items():
        for name in sorted(values.keys() & RESERVED_ARGS):
            yield Problem(f"{key}.{name}", values[name], "set by the launcher for each server", "remove it")
    for layer in LAYERS:
        for name, value in getattr(rollout.server_env, layer).items():
            if name.startswith(RESERVED_ENV):
                yield Problem(f"rollout.server_env.{layer}.{name}", value, "changes what a server loads", "remove it")


def device_is_there(f: Facts) -> Iterator[Problem]:
    """CUDA needs GPUs, enough of them."""
    if f.config.cluster.device == "cuda" and not f.machine.gpus:
        yield Problem(
            "cluster.device",
            "cuda",
            "this machine shows no GPU",
            "use cluster.device=auto, or set CUDA_VISIBLE_DEVICES",
        )
    elif choose_device(f.config, f.machine) == "cuda":
        parallel = f.config.trainer.parallel
        wanted = parallel.tp * parallel.pp * parallel.dp * f.config.trainer.gpus_per_rank
        wanted += sum(g.num_engines * g.gpus_per_engine for g in f.config.rollout.topology.groups.values())
        if wanted > f.machine.gpus:
            yield Problem(
                "cluster.device",
                f.config.cluster.device,
                f"the plan takes {wanted:g} GPUs and the machine has {f.machine.gpus}",
                "lower gpus_per_engine, trainer.gpus_per_rank or the parallel sizes",
            )


def ports_are_free(f: Facts) -> Iterator[Problem]:
    """A fixed block of ports is free."""
    base = f.config.cluster.base_port
    if base:
        last = base + num_ports(f.config) - 1
        if base < 1024 or last > 65535:
            yield Problem(
                "cluster.base_port",
                base,
                f"ports {base} to {last} are not all usable",
                "give 1024 or more, or 0 for a free block",
            )
        elif taken := [port for port in range(base, last + 1) if not port_is_free(port)]:
            yield Problem(
                "cluster.base_port",
                base,
                f"taken: {', '.join(map(str, taken))}",
                "give another port, or 0 for a free block",
            )


RULES: tuple[Callable[[Facts], Iterator[Problem]], ...] = (
    mode_is_built, nodes_have_targets, reward_is_sound, checkpoint_is_whole, groups_can_be_compared, batch_divides,
    tensor_parallel_divides, pipeline_divides, topology_generates, encoders_fit_the_model, freeze_patterns_compile,
    server_arguments_exist,
    servers_stay_ours, device_is_there, ports_are_free,
)  # fmt: skip
