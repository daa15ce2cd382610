"""The typed contract that YAML is checked against: one frozen dataclass a group, defaults nowhere else."""

from slime_launch.schema.cluster import ClusterConfig
from slime_launch.schema.model import ModelConfig
from slime_launch.schema.rollout import ACTOR, EngineGroup, Layered, RolloutConfig, ServedModel, TopologyConfig
from slime_launch.schema.run import (
    AlgorithmConfig,
    Config,
    DriverConfig,
    PlanConfig,
    RewardConfig,
    TrackingConfig,
)
from slime_launch.schema.sweep import SweepConfig
from slime_launch.schema.trainer import OptimConfig, ParallelConfig, TrainerConfig

__all__ = [
    "ACTOR",
    "AlgorithmConfig",
    "ClusterConfig",
    "Config",
    "DriverConfig",
    "EngineGroup",
    "Layered",
    "ModelConfig",
    "OptimConfig",
    "ParallelConfig",
    "PlanConfig",
    "RewardConfig",
    "RolloutConfig",
    "ServedModel",
    "SweepConfig",
    "TopologyConfig",
    "TrackingConfig",
    "TrainerConfig",
]
