"""What the trainer can tell before it runs: whether Megatron takes the config. Joins no group, reads no weight."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from components.megatron.names import name_problems
from components.megatron.platform import load_platform
from components.models.base import HasEncoders, load_family
from slime_launch.errors import LaunchError, Problem
from slime_launch.interfaces import Algorithm, Findings
from slime_launch.targets import instantiate


def preflight(args: Mapping[str, Any]) -> Findings:
    """Make the algorithm, Megatron's config and the layer spec. ``args``: MegatronTrainer's."""
    problems: list[Problem] = []
    try:
        algorithm = instantiate(args["algorithm"])
        if not isinstance(algorithm, Algorithm):
            reason, mend = "has no advantages() and loss()", "see slime_launch.interfaces.Algorithm"
            problems.append(Problem("algorithm.policy._target_", args["algorithm"]["_target_"], reason, mend))
    except (LaunchError, TypeError) as error:
        problems.append(Problem("algorithm.policy", args["algorithm"]["_target_"], str(error), "mend what it names"))
    found = _model(args, json.loads(Path(args["hf_checkpoint"], "config.json").read_text()))
    return Findings([*problems, *found.problems], found.lines)


@contextmanager
def _first_stage(stages: int) -> Iterator[None]:
    """Megatron answers as on the first pipeline stage, though there is no group: specs may ask it for their layers."""
    from megatron.core import parallel_state as ps

    ps.set_pipeline_model_parallel_rank(0)
    ps.set_pipeline_model_parallel_world_size(stages)
    try:
        yield
    finally:
        ps.set_pipeline_model_parallel_rank(None)
        ps.set_pipeline_model_parallel_world_size(None)


def _model(args: Mapping[str, Any], hf: Mapping[str, Any]) -> Findings:
    import torch

    platform = load_platform(args["device"])
    # a plan for GPUs is looked at on a machine without any, too
    (platform if torch.cuda.is_available() else load_platform("cpu")).install()
    from components.megatron.config import model_config
    from components.megatron.parallel import Sizes
    from components.megatron.spec import call_spec

    sizes = Sizes(**{entry.name: args[entry.name] for entry in fields(Sizes)})
    try:
        family = load_family(args["family"], hf)
        config = model_config(
            family, hf, args["transformer"], platform, sizes,
            hf_checkpoint=args["hf_checkpoint"], precision=args["precision"], recompute=args["recompute"],
        )  # fmt: skip
    except LaunchError as error:
        return Findings([Problem("model.transformer", args["transformer"], str(error), "mend what it names")])
    try:
        with _first_stage(sizes.pp):
            answer = call_spec(args["spec"], config, 0 if sizes.virtual else None)
    except LaunchError as error:
        return Findings([Problem("model.spec", args["spec"]["_target_"], str(error), "mend the spec")])
    except Exception as error:  # whatever a user's spec raises
        reason = f"calling it with (config, vp_stage) raises {type(error).__name__}: {error}"
        return Findings([Problem("model.spec", args["spec"]["_target_"], reason, "mend the spec")])
    encoders = answer.encoders if isinstance(answer, HasEncoders) else {}
    problems = list(name_problems(args, hf, family, encoders, config.num_layers))
    kind = type(answer).__name__
    size = f"{config.num_layers} layers, hidden {config.hidden_size}, {config.num_attention_heads} heads"
    return Findings(problems, [f"layer spec {args['spec']['_target_']} gives {kind}; {size}"])
