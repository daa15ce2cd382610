"""The small groups: algorithm, reward, driver, tracking, plan; and the root that holds them all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from slime_launch.schema.cluster import ClusterConfig
from slime_launch.schema.fields import Natural, Node, about
from slime_launch.schema.model import ModelConfig
from slime_launch.schema.rollout import RolloutConfig
from slime_launch.schema.sweep import SweepConfig
from slime_launch.schema.trainer import TrainerConfig

Mode = Literal["run", "plan", "check", "docs", "report", "status", "stop", "replay"]


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig:
    """Advantages and the policy loss."""

    policy: Annotated[Node, about("The algorithm component.")] = field(default_factory=dict)
    compares_group: Annotated[bool, about("Advantages compare the samples of one prompt.")] = True


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """How samples are scored."""

    mix: Annotated[Node, about("The component that combines the parts.")] = field(default_factory=dict)
    parts: Annotated[
        dict[str, Node],
        about("Rewards by name, each with a weight and, if wanted, sources, normalise, gate, on_error, deadline_s."),
    ] = field(default_factory=dict)
    score: Annotated[str | None, about("The part that evaluation reports; null reports the mixed reward.")] = None


@dataclass(frozen=True, kw_only=True)
class DriverConfig:
    """The training loop."""

    loop: Annotated[Node, about("The function that drives the loop.")] = field(default_factory=dict)
    eval_interval: Annotated[Natural, about("Steps between evaluations; 0: only before and after.", "steps")] = 20


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where metrics go beside metrics.jsonl."""

    trackers: Annotated[dict[str, Node], about("Tracker components by name.")] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """How mode=plan prints."""

    format: Annotated[Literal["table", "json", "mermaid"], about("Table for people, JSON for tools, or a graph.")] = (
        "table"
    )
    diff: Annotated[str | None, about("A run folder or plan.json to compare with.")] = None


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    name: Annotated[
        str, Meta(pattern=r"^[A-Za-z0-9][\w.-]*$", description="Name of the run; the end of its folder's name.")
    ] = "run"
    mode: Annotated[Mode, about("What to do with the config.")] = "run"
    seed: Annotated[Natural, about("Seed of data order, sampling and initialisation.")] = 1
    resume: Annotated[str | None, about("auto, a run folder, or one of its checkpoints to go on from.")] = None
    allow_targets: Annotated[list[str], about("More packages that _target_ may name; command line only.")] = field(
        default_factory=list
    )
    model: Annotated[ModelConfig, about("What is trained.")] = field(default_factory=ModelConfig)
    rollout: Annotated[RolloutConfig, about("How samples are generated.")] = field(default_factory=RolloutConfig)
    reward: Annotated[RewardConfig, about("How samples are scored.")] = field(default_factory=RewardConfig)
    algorithm: Annotated[AlgorithmConfig, about("Advantages and policy loss.")] = field(default_factory=AlgorithmConfig)
    driver: Annotated[DriverConfig, about("The training loop.")] = field(default_factory=DriverConfig)
    data: Annotated[Node, about("The data source component.")] = field(default_factory=dict)
    trainer: Annotated[TrainerConfig, about("How it is trained.")] = field(default_factory=TrainerConfig)
    cluster: Annotated[ClusterConfig, about("The machine.")] = field(default_factory=ClusterConfig)
    tracking: Annotated[TrackingConfig, about("Where metrics go.")] = field(default_factory=TrackingConfig)
    plan: Annotated[PlanConfig, about("How mode=plan prints.")] = field(default_factory=PlanConfig)
    sweep: Annotated[SweepConfig, about("Several runs from one command line.")] = field(default_factory=SweepConfig)
