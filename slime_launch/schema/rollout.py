"""rollout: how samples are generated, and by which servers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta

from slime_launch.schema.fields import Count, Fraction, Natural, Node, Positive, Seconds, about

ACTOR = "actor"
"""The model that is trained; every group serves it unless it says otherwise."""

WorkerType = Literal["regular", "prefill", "decode", "encoder", "placeholder"]


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """One model that engines serve; it has a router of its own."""

    path: Annotated[str | None, about("Checkpoint folder; null serves the trained checkpoint.")] = None
    update_weights: Annotated[
        bool | None, about("Send the trainer's weights; null: only where the path is the trained checkpoint.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class EngineGroup:
    """Engines that are alike."""

    worker_type: Annotated[WorkerType, about("What the engines do; a placeholder only reserves GPUs.")] = "regular"
    model: Annotated[str, about("The model they serve: actor, or a name of rollout.topology.models.")] = ACTOR
    path: Annotated[str | None, about("Checkpoint folder; null takes the model's. All groups of a model agree.")] = None
    num_engines: Annotated[Count | None, about("How many servers; null: num_gpus / gpus_per_engine, or 1.")] = None
    num_gpus: Annotated[Count | None, about("GPUs of the whole group, in place of num_engines.", "GPU")] = None
    gpus_per_engine: Annotated[
        Positive | None, about("GPUs of each on CUDA; below 1 several share one; null: tp x pp x dp.", "GPU")
    ] = None
    colocated: Annotated[bool | None, about("Share the trainer's GPUs; null: as the topology says.")] = None
    tp: Annotated[Count, about("Tensor-parallel size of each.")] = 1
    pp: Annotated[Count, about("Pipeline-parallel size of each.")] = 1
    dp: Annotated[Count, about("Data-parallel replicas inside each; with enable_dp_attention they share tp.")] = 1
    urls: Annotated[list[str] | None, about("Engines that someone else runs; null: the launcher starts them.")] = None
    key_file: Annotated[str | None, about("File with the bearer token of the engines in urls.")] = None
    admin_key_file: Annotated[str | None, about("File with their admin token, for weights.")] = None
    overrides: Annotated[dict[str, Any], about("SGLang ServerArgs on top of rollout.server_args.")] = field(
        default_factory=dict
    )


@dataclass(frozen=True, kw_only=True)
class TopologyConfig:
    """The servers of the rollout; edges follow from what each worker type needs and provides."""

    colocated: Annotated[bool, about("Engines share the trainer's GPUs instead of taking others.")] = False
    models: Annotated[dict[str, ServedModel], about("Served models by name; actor is always there.")] = field(
        default_factory=dict
    )
    groups: Annotated[dict[str, EngineGroup], about("Engine groups by name.")] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Layered:
    """Values by where they apply; the more particular wins: common, then the device, then the worker type."""

    common: Annotated[dict[str, Any], about("Every engine and encoder.")] = field(default_factory=dict)
    cpu: Annotated[dict[str, Any], about("On CPU.")] = field(default_factory=dict)
    cuda: Annotated[dict[str, Any], about("On CUDA.")] = field(default_factory=dict)
    regular: Annotated[dict[str, Any], about("Regular engines.")] = field(default_factory=dict)
    prefill: Annotated[dict[str, Any], about("Prefill engines.")] = field(default_factory=dict)
    decode: Annotated[dict[str, Any], about("Decode engines.")] = field(default_factory=dict)
    encoder: Annotated[dict[str, Any], about("Encoder-only servers.")] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PartialConfig:
    """What becomes of generations that a step does not wait for."""

    keep: Annotated[bool, about("Keep aborted generations and go on with them in the next step.")] = False
    mask_old: Annotated[bool, about("Do not train on the tokens that older weights sampled.")] = False
    max_lag: Annotated[
        Count, about("Oldest weights that a kept token may come from; older: generated anew.", "steps")
    ] = 4


@dataclass(frozen=True, kw_only=True)
class EvalEndpoint:
    """Somebody else's server that speaks OpenAI's protocol, asked in place of the engines."""

    base_url: Annotated[
        str | None,
        about("Its address up to /chat/completions, e.g. https://host/v1; null: the run's engines are asked."),
    ] = None
    model: Annotated[str | None, about("The model's name there.")] = None
    key_file: Annotated[str | None, about("File with its API key; null where it takes none.")] = None
    timeout_s: Annotated[Seconds, about("Longest wait for one answer.", "s")] = 120.0
    retries: Annotated[Natural, about("Further tries of a request that fails for a reason that may pass.")] = 3
    concurrency: Annotated[Count, about("Requests in flight.")] = 16
    once: Annotated[bool, about("Ask at the first evaluation only, and report its scores at the later ones too.")] = (
        False
    )
    fields: Annotated[
        dict[str, str | None],
        about(
            "What it calls SGLang's sampling parameters, where OpenAI's protocol has no such name or it wants another, "
            "e.g. {max_new_tokens: max_completion_tokens, top_k: top_k}; null leaves one out."
        ),
    ] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EvalSet:
    """One held-out set, where it differs from the run."""

    data: Annotated[Node, about("Its own data source, all of whose sets are asked; null takes the run's.")] = field(
        default_factory=dict
    )
    samples: Annotated[Count | None, about("Samples a prompt; null: rollout.eval_samples.")] = None
    sampling: Annotated[dict[str, Any], about("SGLang sampling parameters over the rollout's.")] = field(
        default_factory=dict
    )
    reward: Annotated[dict[str, Any], about("Its own reward group (mix, parts, score); null takes the run's.")] = field(
        default_factory=dict
    )
    pass_at: Annotated[list[int], about("Report pass@k for these k.")] = field(default_factory=list)
    endpoint: Annotated[EvalEndpoint, about("Who answers, in place of the run's engines.")] = field(
        default_factory=EvalEndpoint
    )


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How samples are generated, and by which servers."""

    worker: Annotated[Node, about("The rollout component.")] = field(default_factory=dict)
    server: Annotated[Node, about("The component that hosts every server kind.")] = field(default_factory=dict)
    external: Annotated[Node, about("The component that stands for a server which someone else runs.")] = field(
        default_factory=dict
    )
    topology: Annotated[TopologyConfig, about("The servers.")] = field(default_factory=TopologyConfig)
    generate: Annotated[Node, about("How one rollout comes about: generate(sample, engine).")] = field(
        default_factory=dict
    )
    media: Annotated[Node, about("Reads the images that environments show in later turns, within bounds.")] = field(
        default_factory=dict
    )
    routing: Annotated[
        Literal["auto", "router", "direct"],
        about(
            "Who picks the engine of a request: a router, or the rollout itself, the least loaded engine and "
            "data-parallel rank; auto: the router only where prefill and decode engines have to be paired."
        ),
    ] = "auto"
    num_prompts: Annotated[Count, about("Prompts a step.")] = 16
    group_size: Annotated[Count, about("Samples a prompt.")] = 8
    temperature: Annotated[Positive, about("Sampling temperature, evaluation's too.")] = 1.0
    top_p: Annotated[Fraction, about("Nucleus sampling mass.")] = 1.0
    max_new_tokens: Annotated[Count, about("Response budget, all turns together.", "tokens")] = 16
    sampling: Annotated[dict[str, Any], about("More SGLang sampling parameters, e.g. top_k, stop.")] = field(
        default_factory=dict
    )
    oversample: Annotated[
        float, Meta(ge=1), about("Prompts begun for each one wanted; the first whole groups are taken.")
    ] = 1.0
    filters: Annotated[dict[str, Node], about("Functions that drop scored groups, by name, asked in order.")] = field(
        default_factory=dict
    )
    draw_limit: Annotated[Count, about("Prompts drawn for each one wanted before a step gives up.")] = 8
    keep_when_insufficient: Annotated[
        bool, about("Then take groups that filters dropped, instead of ending the run.")
    ] = False
    partial: Annotated[PartialConfig, about("Generations cut short.")] = field(default_factory=PartialConfig)
    expected_prompt_tokens: Annotated[Count, about("Prompt length that the plan's estimates assume.", "tokens")] = 64
    eval_samples: Annotated[Count, about("Samples a prompt in evaluation.")] = 4
    eval_sets: Annotated[dict[str, EvalSet], about("Held-out sets that differ from the run, by name.")] = field(
        default_factory=dict
    )
    pass_at: Annotated[list[int], about("Report pass@k for these k, over training groups and evaluation.")] = field(
        default_factory=list
    )
    request_timeout_s: Annotated[Seconds, about("Longest wait for one generation.", "s")] = 120.0
    timeout_s: Annotated[Seconds, about("Longest wait for a step's rollouts, or for one evaluation.", "s")] = 1800.0
    max_concurrency: Annotated[Count, about("Requests in flight for each engine that generates.")] = 128
    max_refused_answers: Annotated[
        Natural, about("Answers of one engine that do not hold together (and are asked for again) let pass in a step.")
    ] = 8
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
