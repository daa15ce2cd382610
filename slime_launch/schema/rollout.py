"""rollout: how samples are generated, and by which servers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from slime_launch.schema.fields import Count, Fraction, Natural, Node, NonNegative, Positive, Seconds, about

WorkerType = Literal["regular", "encoder"]


@dataclass(frozen=True, kw_only=True)
class EngineGroup:
    """Engines that are alike."""

    worker_type: Annotated[WorkerType, about("What the engines of the group do.")] = "regular"
    num_engines: Annotated[Count, about("How many servers.")] = 1
    tp: Annotated[Count, about("Tensor-parallel size of each.")] = 1
    gpus_per_engine: Annotated[NonNegative, about("GPUs of each on CUDA; a fraction shares one.", "GPU")] = 1.0
    overrides: Annotated[dict[str, Any], about("SGLang ServerArgs on top of rollout.server_args.")] = field(
        default_factory=dict
    )


@dataclass(frozen=True, kw_only=True)
class TopologyConfig:
    """The servers of the rollout; edges follow from what each worker type needs and provides."""

    groups: Annotated[dict[str, EngineGroup], about("Engine groups by name.")] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Layered:
    """Values by where they apply; the more particular wins: common, then the device, then the server kind."""

    common: Annotated[dict[str, Any], about("Every engine and encoder.")] = field(default_factory=dict)
    cpu: Annotated[dict[str, Any], about("On CPU.")] = field(default_factory=dict)
    cuda: Annotated[dict[str, Any], about("On CUDA.")] = field(default_factory=dict)
    regular: Annotated[dict[str, Any], about("Regular engines.")] = field(default_factory=dict)
    encoder: Annotated[dict[str, Any], about("Encoder-only servers.")] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How samples are generated, and by which servers."""

    worker: Annotated[Node, about("The rollout component.")] = field(default_factory=dict)
    server: Annotated[Node, about("The component that hosts every server kind.")] = field(default_factory=dict)
    topology: Annotated[TopologyConfig, about("The servers.")] = field(default_factory=TopologyConfig)
    num_prompts: Annotated[Count, about("Prompts a step.")] = 16
    group_size: Annotated[Count, about("Samples a prompt.")] = 8
    temperature: Annotated[Positive, about("Sampling temperature, evaluation's too.")] = 1.0
    top_p: Annotated[Fraction, about("Nucleus sampling mass.")] = 1.0
    max_new_tokens: Annotated[Count, about("Response budget.", "tokens")] = 16
    eval_samples: Annotated[Count, about("Samples a prompt in evaluation.")] = 4
    request_timeout_s: Annotated[Seconds, about("Longest wait for one generation.", "s")] = 120.0
    max_concurrency: Annotated[Count, about("Requests in flight for each regular engine.")] = 128
    server_args: Annotated[Layered, about("SGLang ServerArgs fields by where they apply.")] = field(
        default_factory=Layered
    )
    router_args: Annotated[dict[str, Any], about("sglang-router arguments.")] = field(default_factory=dict)
    server_env: Annotated[Layered, about("Environment of the servers by where it applies.")] = field(
        default_factory=Layered
    )
    server_threads: Annotated[Natural, about("CPU threads of each server.")] = 1
    epd_architectures: Annotated[
        list[str], about("Architectures we add to those SGLang accepts for encoder-prefill-decode.")
    ] = field(default_factory=list)
