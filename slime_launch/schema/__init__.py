"""The typed contract that YAML is checked against: one frozen dataclass a group, defaults nowhere else."""

from slime_launch.schema.model import ModelConfig
from slime_launch.schema.rollout import EngineGroup, Layered, RolloutConfig, TopologyConfig
from slime_launch.schema.run import (
    AlgorithmConfig,
    ClusterConfig,
    Config,
    DriverConfig,
    PlanConfig,
    RewardConfig,
    TrackingConfig,
)
from slime_launch.schema.trainer import OptimConfig, ParallelConfig, TrainerConfig

__all__ = [
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
    "TopologyConfig",
    "TrackingConfig",
    "TrainerConfig",
]
