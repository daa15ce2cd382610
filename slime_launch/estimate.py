"""What each actor of a plan takes in memory, from config.json and the actor's own arguments.

The numbers are ``slime_launch.sizes``'; this module only says which of them an actor of a kind has. The trainer's are
those of its fullest rank.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from slime_launch.machine import Machine
from slime_launch.plan import Actor
from slime_launch.schema import ACTOR, Config
from slime_launch.sizes import (
    CPU_PROCESS_BYTES,
    DTYPES,
    Batch,
    Layout,
    Memory,
    Parameters,
    engine_bytes,
    parameters,
    trainer_bytes,
)

MB = 2**20
GB = 2**30
PRECISION = {"float32": "fp32", "bfloat16": "bf16"}
_ENGINES = ("regular", "prefill", "decode", "follower", "encoder")


def estimates(
    config: Config, device: str, hf: Mapping[str, Any], machine: Machine, actors: Sequence[Actor]
) -> dict[tuple[str, str], dict[str, float]]:
    """MB of an actor by (group, kind), since actors of a group are alike; see ``Actor.memory_mb``."""
    estimator = _Estimator(config, device, hf, config.cluster.memory_gb or machine.memory_gb)
    alike = {(actor.group, actor.kind): actor for actor in actors}
    return {key: estimator.memory_mb(actor) for key, actor in alike.items()}


@dataclass(frozen=True)
class _Estimator:
    """Estimates for one plan; memory_gb: main memory of a node."""

    config: Config
    device: str
    hf: Mapping[str, Any]
    memory_gb: float

    def memory_mb(self, actor: Actor) -> dict[str, float]:
        """MB by what they are for; empty for a kind or an architecture of which nothing is known."""
        if actor.kind == "trainer":
            memory = self._trainer(actor)
        elif actor.kind in _ENGINES:
            memory = self._engine(actor)
        else:
            memory = Memory(fixed=self._fixed(actor.kind))
        return {name: round(size / MB, 1) for name, size in asdict(memory).items() if size} if memory else {}

    def _fixed(self, kind: str) -> int:
        kind = "regular" if kind in ("prefill", "decode", "follower") else kind
        return CPU_PROCESS_BYTES.get(kind, 0) if self.device == "cpu" else 0

    def _trainer(self, actor: Actor) -> Memory | None:
        found = parameters(self.hf)
        if found is None:
            return None
        trainer, rollout = self.config.trainer, self.config.rollout
        parallel = trainer.parallel
        given = self.config.model.transformer
        scored = rollout.max_new_tokens
        length = rollout.expected_prompt_tokens + scored
        rows = trainer.max_tokens // length if trainer.max_tokens else trainer.micro_batch_size
        samples = rollout.num_prompts * rollout.group_size // (parallel.dp * trainer.num_minibatches)
        rows = max(1, min(rows, samples))
        layout = Layout(
            tp=parallel.tp, pp=parallel.pp, dp=parallel.dp, cp=parallel.cp, ep=parallel.ep,
            first=given.get("num_layers_in_first_pipeline_stage"),
            last=given.get("num_layers_in_last_pipeline_stage"),
        )  # fmt: skip
        batch = Batch(rows=rows, length=length, scored=rows * scored, chunk=trainer.logprob_chunk)
        return trainer_bytes(
            found, layout, batch=batch, frozen=self.config.model.freeze, train_only=self.config.model.train_only,
            precision=PRECISION[actor.args["precision"]], distributed_optimizer=trainer.optim.distributed,
            fixed=self._fixed(actor.kind),
            recompute=trainer.recompute,
        )  # fmt: skip

    def _engine(self, actor: Actor) -> Memory | None:
        args = actor.args["server_args"]
        found = self._served(actor)
        if found is None:
            return None
        device_gb = self.memory_gb if self.device == "cpu" else self.config.cluster.gpu_memory_gb
        return engine_bytes(
            found, Layout(tp=args.get("tp_size", 1), pp=args.get("pp_size", 1)),
            weight_bytes=DTYPES.get(str(args.get("dtype", "auto")), DTYPES.get(str(self.hf.get("dtype")), 2)),
            max_total_tokens=args.get("max_total_tokens"), device_bytes=int(device_gb * GB),
            mem_fraction_static=args.get("mem_fraction_static"), context_length=args.get("context_length"),
            max_running_requests=args.get("max_running_requests"), encoder_only=actor.kind == "encoder",
            fixed=self._fixed(actor.kind),
        )  # fmt: skip

    def _served(self, actor: Actor) -> Parameters | None:
        if actor.args.get("model", ACTOR) == ACTOR:
            return parameters(self.hf)
        other = _config_of(actor.args["model_path"])
        return parameters(other or self.hf)


@cache
def _config_of(folder: str) -> Mapping[str, Any] | None:
    """config.json of another served model; None where it cannot be read, as for the trained one's first weights."""
    try:
        found: Mapping[str, Any] = json.loads(Path(folder, "config.json").read_text())
    except (OSError, ValueError):
        return None
    return found
