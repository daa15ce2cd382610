"""trainer: how Megatron-Core trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from slime_launch.schema.fields import Count, Decay, Natural, Node, NonNegative, Positive, Seconds, about


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Adam and its schedule."""

    lr: Annotated[Positive, about("Peak learning rate.")] = 5e-4
    min_lr: Annotated[NonNegative, about("Learning rate that a schedule decays to.")] = 0.0
    warmup_steps: Annotated[Natural, about("Linear warm-up.", "steps")] = 0
    schedule: Annotated[Literal["constant", "linear", "cosine"], about("Decay after warm-up.")] = "constant"
    weight_decay: Annotated[NonNegative, about("Decoupled weight decay.")] = 0.0
    beta1: Annotated[Decay, about("Adam's first moment decay.")] = 0.9
    beta2: Annotated[Decay, about("Adam's second moment decay.")] = 0.95
    eps: Annotated[Positive, about("Adam's epsilon.")] = 1e-8
    clip_grad: Annotated[NonNegative, about("Global gradient norm bound; 0 turns it off.")] = 1.0
    distributed: Annotated[bool, about("Split Adam's state over data-parallel ranks (CUDA).")] = False


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Megatron's parallel sizes; data parallelism is what dp gives on top of tp x pp x cp."""

    tp: Annotated[Count, about("Tensor-parallel size.")] = 1
    pp: Annotated[Count, about("Pipeline-parallel size.")] = 1
    dp: Annotated[Count, about("Data-parallel size.")] = 1
    vpp: Annotated[Count, about("Virtual stages of each pipeline stage, interleaved.")] = 1
    sp: Annotated[
        bool, about("Sequence parallelism inside tp: its ranks share the sequence between the split layers.")
    ] = False
    ep: Annotated[Count, about("Expert-parallel size, inside dp x cp; with tp it needs sp.")] = 1
    cp: Annotated[Count, about("Context-parallel size: ranks that share each row of tokens.")] = 1


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept of a run, to go on from; in the run folder, under checkpoints/step_<n>."""

    interval: Annotated[Natural, about("Steps between checkpoints, the last step's too; 0 makes none.", "steps")] = 0
    keep_last: Annotated[Count, about("Checkpoints that stay.")] = 2
    hf_interval: Annotated[
        Natural, about("Steps between Hugging Face exports into hf_<step>; 0: hf/ at the end only.", "steps")
    ] = 0
    weights_from: Annotated[
        str | None, about("A run folder, or one checkpoint of it, whose weights alone are the start.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How Megatron-Core trains."""

    worker: Annotated[Node, about("The trainer component, one actor a rank.")] = field(default_factory=dict)
    num_steps: Annotated[Natural, about("GRPO steps; 0 only evaluates.", "steps")] = 100
    micro_batch_size: Annotated[
        Count, about("Sequences of one forward and backward, where max_tokens does not decide.")
    ] = 64
    max_tokens: Annotated[
        Count | None,
        about("Tokens of one forward and backward, padding among them; null: micro_batch_size decides.", "tokens"),
    ] = None
    logprob_chunk: Annotated[
        Count, about("Tokens whose vocabulary logits are in memory at once; backward makes them again.", "tokens")
    ] = 1024
    recompute: Annotated[
        Literal["none", "selective", "full"],
        about("What backward computes again instead of keeping: nothing, the feed-forward layers, whole layers."),
    ] = "none"
    num_minibatches: Annotated[Count, about("Optimizer steps a rollout.")] = 1
    max_logprob_gap: Annotated[Positive, about("Mean |trainer - engine| logprob above which the run ends.", "nat")] = (
        1e-3
    )
    bucket_mb: Annotated[Positive, about("Weights sent at once.", "MB")] = 64.0
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"], about("Of weights and activations; auto: bfloat16 on CUDA.")
    ] = "auto"
    threads: Annotated[Count, about("CPU threads of each rank.")] = 1
    timeout_s: Annotated[Seconds, about("Longest wait for one training step or weight sync.", "s")] = 600.0
    optim: Annotated[OptimConfig, about("Optimizer.")] = field(default_factory=OptimConfig)
    parallel: Annotated[ParallelConfig, about("Parallel sizes.")] = field(default_factory=ParallelConfig)
    checkpoint: Annotated[CheckpointConfig, about("Checkpoints of the training state.")] = field(
        default_factory=CheckpointConfig
    )
