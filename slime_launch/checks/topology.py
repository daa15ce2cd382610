"""Rules about the servers: who generates, who encodes, who gets weights."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from slime_launch.checks.facts import Facts, Rule, group_key
from slime_launch.errors import Problem
from slime_launch.placement import TRAINER
from slime_launch.schema import ACTOR
from slime_launch.schema.build import nearest
from slime_launch.sglang_source import epd_architectures
from slime_launch.topology import (
    TAKES_ENCODERS,
    TAKES_WEIGHTS,
    model_path,
    server_args,
    takes_updates,
    wants_encoders,
)

_TOPOLOGY = "rollout.topology"
_RESERVED_NAMES = (TRAINER, "rollout", "checkpoint", "driver", "ray")
_NAME = re.compile(r"^[A-Za-z][\w-]*$")
_LOOPBACK = re.compile(r"^https?://(127\.\d+\.\d+\.\d+|localhost|\[::1\])(:|/|$)")


def names_are_ours_to_use(f: Facts) -> Iterator[Problem]:
    """Names of groups and models become names of actors and files."""
    for key, name in [(group_key(n), n) for n in f.groups] + [(f"{_TOPOLOGY}.models.{n}", n) for n in f.models]:
        if not _NAME.match(name):
            yield Problem(key, name, "not a name for actors and log files", "use letters, digits, _ and -")
        elif key == group_key(name) and (name in _RESERVED_NAMES or name.startswith("router-")):
            yield Problem(key, name, "a name of the launcher's own actors", "choose another, e.g. engine")


def groups_serve_models(f: Facts) -> Iterator[Problem]:
    """Each group's model is there, and each model has a group."""
    for name, group in f.groups.items():
        if group.model not in f.models:
            yield Problem(group_key(name, "model"), group.model, "no such model", nearest(group.model, f.models))
    for model in f.models:
        if model != ACTOR and not f.serving(model):
            mend = f"give a group model: {model}, or remove the model"
            yield Problem(f"{_TOPOLOGY}.models.{model}", model, "no engine group serves it", mend)


def the_actor_generates(f: Facts) -> Iterator[Problem]:
    """There is an engine to generate with, and prefill and decode come together."""
    if not f.serving(ACTOR, "regular", "decode"):
        mend = "choose an option of rollout/topology, e.g. rollout/topology=single"
        reason = "no regular or decode engines of the actor, so nothing generates"
        yield Problem(f"{_TOPOLOGY}.groups", list(f.groups), reason, mend)
    for model in f.models:
        kinds = {group.worker_type: name for name, group in f.serving(model).items()}
        for one, other in (("prefill", "decode"), ("decode", "prefill")):
            if one in kinds and other not in kinds and "regular" not in kinds:
                key = group_key(kinds[one], "worker_type")
                yield Problem(key, one, f"model {model} has no {other} engines", f"add a group of {other} engines")
        if "regular" in kinds and (split := kinds.keys() & {"prefill", "decode"}):
            key, reason = group_key(kinds["regular"], "worker_type"), f"mixed with {', '.join(sorted(split))} engines"
            mend = "give the regular engines a model of their own, or make them prefill or decode"
            yield Problem(key, "regular", f"{reason} in model {model}, which its router cannot serve", mend)


def splitting_needs_cuda(f: Facts) -> Iterator[Problem]:
    """Prefill hands its KV cache to decode by GPU transfer backends."""
    for name, group in f.groups.items():
        if group.worker_type in ("prefill", "decode") and f.device == "cpu":
            reason = "SGLang's KV transfer between prefill and decode needs GPUs"
            mend = "use rollout/topology=single or epd here, or plan for GPUs with cluster.gpus_per_node=8"
            yield Problem(group_key(name, "worker_type"), group.worker_type, reason, mend)


def encoders_are_used(f: Facts) -> Iterator[Problem]:
    """Each encoder has an engine of its model that takes its URL."""
    for model in f.models:
        encoders = f.serving(model, "encoder")
        users = [g for g in f.serving(model, *TAKES_ENCODERS).values() if g.urls is None]
        if encoders and not any(wants_encoders(server_args(f.config, f.device, group)) for group in users):
            for name in encoders:
                reason = f"no regular or prefill engine of model {model} takes its URL"
                mend = "add one, drop language_only=false and encoder_urls from overrides, or remove the encoder"
                yield Problem(group_key(name, "worker_type"), "encoder", reason, mend)


def encoders_fit_the_model(f: Facts) -> Iterator[Problem]:
    """Encoder-only servers need an architecture that can be split."""
    accepted = epd_architectures() | set(f.config.rollout.epd_architectures)
    for name in f.serving(ACTOR, "encoder"):
        key = group_key(name, "worker_type")
        for architecture in f.hf.get("architectures", ()):
            if architecture not in accepted:
                reason = f"SGLang cannot split {architecture} into encoder and language model"
                mend = "use rollout/topology=single, or a model that has an encoder"
                yield Problem(key, "encoder", reason, mend)
        if not f.config.model.encoders:
            reason = "model.encoders names no encoder, so nothing says which parameters the server holds"
            yield Problem(key, "encoder", reason, "name them, or use rollout/topology=single")


def encoders_stay_frozen(f: Facts) -> Iterator[Problem]:
    """An encoder-only server takes no weights, so what it holds must not train."""
    if not f.serving(ACTOR, "encoder") or not takes_updates(f.config, ACTOR):
        return
    for encoder, prefix in f.config.model.encoders.items():
        frozen, alone = (
            any(_matches(pattern, prefix + "x.weight") for pattern in patterns)
            for patterns in (f.config.model.freeze, f.config.model.train_only)
        )
        if not (frozen or f.config.model.train_only) or alone:
            reason = f"the {encoder} encoder ({prefix}) would train, and an encoder-only server has no way to take"
            mend = f"add '^{re.escape(prefix)}' to model.freeze, or use rollout/topology=single"
            yield Problem("model.freeze", f.config.model.freeze, f"{reason} new weights", mend)


def encoders_agree_with_their_users(f: Facts) -> Iterator[Problem]:
    """Both ends of an embedding transfer speak the same protocol; mismatched, requests fail with 500 or 503."""
    name = "encoder_transfer_backend"
    for model in f.models:
        ends = {
            group_name: server_args(f.config, f.device, group).get(name, "auto")
            for group_name, group in f.serving(model, "encoder", *TAKES_ENCODERS).items()
            if group.urls is None
        }
        if f.serving(model, "encoder") and len(set(ends.values())) > 1:
            for group_name, value in ends.items():
                reason = f"encoders and engines of model {model} differ: {ends}"
                yield Problem(f"{group_key(group_name, 'overrides')}.{name}", value, reason, "give all the same")


def no_dp_attention_behind_encoders(f: Facts) -> Iterator[Problem]:
    """Only some data-parallel schedulers of a prefill engine would register with the encoder; the others hang."""
    for model in f.models:
        if f.serving(model, "encoder"):
            for name, group in f.serving(model, "prefill").items():
                if server_args(f.config, f.device, group).get("enable_dp_attention"):
                    key = f"{group_key(name, 'overrides')}.enable_dp_attention"
                    reason = "a prefill engine behind an encoder hangs with dp attention"
                    yield Problem(key, True, reason, "turn it off here; decode engines may keep it")


def bootstrap_ports_differ(f: Facts) -> Iterator[Problem]:
    """Language-only engines on one node each open a port of their own for encoders to register at."""
    for field in ("encoder_bootstrap_port", "disaggregation_bootstrap_port"):
        given = {
            name: (int(group.overrides[field]), len(f.placement.engines.get(name, ())))
            for name, group in f.groups.items()
            if isinstance(group.overrides.get(field), int)
        }
        counts = Counter({port: 0 for port, _ in given.values()})
        for port, engines in given.values():
            counts[port] += engines
        for name, (port, _) in given.items():
            if counts[port] > 1:
                reason = f"{counts[port]} engines would open it"
                key = f"{group_key(name, 'overrides')}.{field}"
                yield Problem(key, port, reason, "leave it out: the launcher gives each engine its own")


def one_model_is_updated(f: Facts) -> Iterator[Problem]:
    """The trainer's weights belong to one model."""
    updated = [model for model in f.models if f.serving(model, *TAKES_WEIGHTS) and takes_updates(f.config, model)]
    for model in [] if len(updated) < 2 else updated:
        if model != ACTOR:
            reason = f"the trainer's weights would go into {' and '.join(updated)}"
            mend = "set it to false for all but one"
            yield Problem(
                f"{_TOPOLOGY}.models.{model}.update_weights",
                f.config.rollout.topology.models.get(model) and f.config.rollout.topology.models[model].update_weights,
                reason,
                mend,
            )


def updates_fit_the_checkpoint(f: Facts) -> Iterator[Problem]:
    """Weights go only into engines that were started with the same model."""
    for model, served in f.config.rollout.topology.models.items():
        if served.update_weights and model_path(f.config, model) != model_path(f.config, ACTOR):
            reason = f"its path is {model_path(f.config, model)}, not the trained checkpoint"
            yield Problem(
                f"{_TOPOLOGY}.models.{model}.update_weights", True, reason, "set it to false, or path to null"
            )


def groups_of_a_model_agree(f: Facts) -> Iterator[Problem]:
    """One model has one checkpoint."""
    for model in f.models:
        paths = {name: group.path for name, group in f.serving(model).items() if group.path is not None}
        if len(set(paths.values())) > 1:
            for name, path in paths.items():
                reason = f"groups of model {model} have different paths: {paths}"
                yield Problem(group_key(name, "path"), path, reason, "give one path, or another model")


def external_engines_are_named(f: Facts) -> Iterator[Problem]:
    """Engines that someone else runs have URLs."""
    for name, group in f.groups.items():
        if group.urls is None:
            for field in ("key_file", "admin_key_file"):
                if getattr(group, field) is not None:
                    reason = "for engines that someone else runs; ours get keys of their own"
                    yield Problem(group_key(name, field), getattr(group, field), reason, "give urls too, or remove it")
        elif not group.urls:
            yield Problem(group_key(name, "urls"), "[]", "no engines", "list them, e.g. [http://10.0.0.7:30000]")
        elif group.worker_type == "placeholder":
            yield Problem(group_key(name, "urls"), group.urls, "a placeholder has no engines", "remove them")
        else:
            for url in group.urls:
                if not re.match(r"^https?://[\w.\-\[\]:]+(:\d+)?/?$", url):
                    yield Problem(group_key(name, "urls"), url, "not a server's URL", "write http://host:port")


def external_engines_take_weights(f: Facts) -> Iterator[Problem]:
    """Weights go into an engine that someone else runs by its admin token, and only if it can reach the trainer."""
    for name, group in f.groups.items():
        if not group.urls or group.worker_type not in TAKES_WEIGHTS or not takes_updates(f.config, group.model):
            continue
        if group.admin_key_file is None:
            reason = f"model {group.model} takes the trainer's weights, for which engines want their admin token"
            mend = "name a file with it, or set update_weights: false of the model"
            yield Problem(group_key(name, "admin_key_file"), None, reason, mend)
        away = [url for url in group.urls if not _LOOPBACK.match(url)]
        if away and f.config.mode == "run" and f.config.cluster.loopback and group.dp == group.pp == 1:
            reason = "an engine on another machine cannot reach a trainer that listens on loopback only"
            mend = "use cluster=ray or slurm, or set update_weights: false of the model"
            yield Problem(group_key(name, "urls"), ", ".join(away), reason, mend)


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error:
        return False


RULES: tuple[Rule, ...] = (
    names_are_ours_to_use, groups_serve_models, the_actor_generates, splitting_needs_cuda, encoders_are_used,
    encoders_fit_the_model, encoders_stay_frozen, encoders_agree_with_their_users, no_dp_attention_behind_encoders,
    bootstrap_ports_differ, one_model_is_updated, updates_fit_the_checkpoint, groups_of_a_model_agree,
    external_engines_are_named, external_engines_take_weights,
)  # fmt: skip
