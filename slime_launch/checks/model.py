"""Rules about the model: its files, and how it is cut over ranks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from slime_launch.checks.facts import Facts, Rule, group_key
from slime_launch.errors import Problem
from slime_launch.hf_folder import folder_faults
from slime_launch.model_files import AUTO, families
from slime_launch.targets import OWN_PACKAGES, static_fault
from slime_launch.topology import served_models

ADAPTER = "components.models.slime_spec.adapt"


def family_is_known(f: Facts) -> Iterator[Problem]:
    """The family knows the architecture that config.json names."""
    known, given = families(), f.config.model.family
    for architecture in f.hf.get("architectures", ()):
        if architecture not in known:
            reason = f"nobody knows the architecture {architecture}"
            yield Problem("model.family", given, reason, f"known are {', '.join(sorted(known))}")
        elif given not in (AUTO, known[architecture]) and given in known.values():
            reason = f"config.json is a {architecture}, which family {known[architecture]} knows"
            yield Problem("model.family", given, reason, f"choose model={known[architecture]}")


def spec_fits_the_family(f: Facts) -> Iterator[Problem]:
    """A spec of one of our families builds the parameters that its own weight table names."""
    target = str(f.config.model.spec.get("_target_", ""))
    owner = target.removeprefix("components.models.").split(".")[0]
    if target.startswith("components.models.") and owner in families().values() and owner != f.family != AUTO:
        reason = f"builds {owner}'s model, and the weights are {f.family}'s"
        yield Problem("model.spec._target_", target, reason, f"choose model={f.family}")


def engine_serves_the_same_model(f: Facts) -> Iterator[Problem]:
    """Nothing in config.json is honoured by the trainer and ignored, or not survived, by the installed SGLang."""
    rope = f.text.get("rope_parameters") or f.text.get("rope_scaling") or {}
    heads, hidden = f.text.get("num_attention_heads"), f.text.get("hidden_size")
    odd_head = heads and hidden and (f.text.get("head_dim") or hidden // heads) != hidden // heads
    architectures = f.hf.get("architectures", ())
    moe = "Qwen3MoeForCausalLM" in architectures
    found = {
        "mlp_bias": "LlamaForCausalLM" in architectures and f.text.get("mlp_bias"),
        "mlp_only_layers": moe and f.text.get("mlp_only_layers"),
        "decoder_sparse_step": moe and f.text.get("decoder_sparse_step", 1) != 1,
        "tie_word_embeddings": moe and f.text.get("tie_word_embeddings"),
        "rope_parameters.attention_factor": isinstance(rope, dict) and rope.get("attention_factor"),
        "head_dim": "Qwen2ForCausalLM" in architectures and odd_head,
    }
    for key, value in found.items():
        if value:
            reason = f"config.json sets {key}, which SGLang 0.5.23 does not serve: trainer and engine would differ"
            given = f.config.model.hf_config or f.config.model.hf_checkpoint or f.family
            yield Problem("model.hf_checkpoint", given, reason, "use a checkpoint without it")


def checkpoints_are_whole(f: Facts) -> Iterator[Problem]:
    """A user's checkpoint folders have weights and a tokenizer, and nothing that would run code when loaded."""
    given = {"model.hf_checkpoint": f.config.model.hf_checkpoint}
    given |= {f"rollout.topology.models.{name}.path": m.path for name, m in served_models(f.config).items()}
    given |= {group_key(name, "path"): group.path for name, group in f.groups.items() if group.urls is None}
    for key, path in given.items():
        for reason, mend in folder_faults(Path(path).expanduser().resolve()) if path is not None else ():
            yield Problem(key, path, reason, mend)
    if f.config.model.hf_checkpoint is not None and "auto_map" in f.hf:
        reason = "config.json has auto_map, which names code to run"
        yield Problem("model.hf_checkpoint", f.config.model.hf_checkpoint, reason, "remove the entry")
    if f.config.mode == "run" and f.config.model.hf_checkpoint is None and f.config.model.hf_config is not None:
        reason = f"hf_config={f.config.model.hf_config} is enough to plan, and a run needs the weights"
        yield Problem("model.hf_checkpoint", None, reason, "give the folder that holds them")


def patterns_compile(f: Facts) -> Iterator[Problem]:
    """What trains is named by regular expressions, by one of the two keys."""
    model = f.config.model
    if model.freeze and model.train_only:
        reason = f"excludes model.freeze={model.freeze}: what one leaves out the other says already"
        yield Problem("model.train_only", model.train_only, reason, "keep one of them; the other one is []")
    for key, patterns in {"model.freeze": model.freeze, "model.train_only": model.train_only}.items():
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                reason = f"not a regular expression ({error})"
                yield Problem(key, pattern, reason, "escape its special characters")


def adapted_spec_is_allowed(f: Facts) -> Iterator[Problem]:
    """The spec that an adapter calls passes the same door as any target."""
    spec, packages = f.config.model.spec, (*OWN_PACKAGES, *f.config.allow_targets)
    if spec.get("_target_") == ADAPTER and (fault := static_fault(spec.get("spec"), packages)):
        mend = "name a function of components, slime_launch or a package in allow_targets"
        yield Problem("model.spec.spec", spec.get("spec"), fault, mend)


def tensor_parallel_divides(f: Facts) -> Iterator[Problem]:
    """Heads and MLP divide by every tensor-parallel size; an engine may hold copies of key-value heads."""
    sizes = {"trainer.parallel.tp": f.config.trainer.parallel.tp}
    engines = {group_key(name, "tp"): group.tp for name, group in f.serving("actor").items()}
    for key, tp in (sizes | engines).items():
        for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "moe_intermediate_size"):
            count = f.text.get(name)
            copies = key in engines and name == "num_key_value_heads" and isinstance(count, int) and tp % count == 0
            if isinstance(count, int) and count % tp and not copies:
                yield Problem(key, tp, f"does not divide {name}={count} of the model", f"give a divisor of {count}")


def pipeline_divides(f: Facts) -> Iterator[Problem]:
    """Layers divide over pipeline stages, those that the first and last stage are given aside."""
    layers, pp = f.text.get("num_hidden_layers"), f.config.trainer.parallel.pp
    given = [
        f.config.model.transformer[name]
        for name in ("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage")
        if isinstance(f.config.model.transformer.get(name), int)
    ]
    if not isinstance(layers, int) or pp == 1:
        return
    left, stages = layers - sum(given), pp - len(given)
    if left < stages or (left % stages if stages else left):
        if given:
            reason = f"{left} of num_hidden_layers={layers} are left for {stages} stages"
        else:
            reason = f"does not divide num_hidden_layers={layers} of the model"
        mend = f"give a divisor of {layers}, or model.transformer.num_layers_in_first_pipeline_stage (and _last_)"
        yield Problem("trainer.parallel.pp", pp, reason, mend)


RULES: tuple[Rule, ...] = (
    family_is_known, spec_fits_the_family, engine_serves_the_same_model, checkpoints_are_whole, patterns_compile,
    adapted_spec_is_allowed, tensor_parallel_divides, pipeline_divides,
)  # fmt: skip
