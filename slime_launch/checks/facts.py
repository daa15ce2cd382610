"""What rules look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from slime_launch.errors import Problem
from slime_launch.machine import Machine
from slime_launch.model_files import family_of
from slime_launch.placement import Placement, place
from slime_launch.plan import LaunchPlan
from slime_launch.resolve import choose_device, gpus_per_node
from slime_launch.schema import Config, EngineGroup
from slime_launch.topology import groups_of, served_models


@dataclass(frozen=True)
class Facts:
    """The config, the machine and the model's config.json (empty when it cannot be read)."""

    config: Config
    machine: Machine
    hf: dict[str, Any]

    @property
    def text(self) -> dict[str, Any]:
        """The language model's part of config.json."""
        text = self.hf.get("text_config")
        return text if isinstance(text, dict) else self.hf

    @property
    def family(self) -> str:
        """The model's family."""
        return family_of(self.config, self.hf)

    @property
    def device(self) -> str:
        """cpu or cuda."""
        return choose_device(self.config, self.machine)

    @property
    def gpus_per_node(self) -> int:
        """GPUs of a node, 0 on CPU."""
        return gpus_per_node(self.config, self.machine)

    @cached_property
    def placement(self) -> Placement:
        """Who sits where."""
        return place(self.config, self.gpus_per_node)

    @property
    def groups(self) -> dict[str, EngineGroup]:
        """All engine groups by name."""
        return self.config.rollout.topology.groups

    @property
    def models(self) -> list[str]:
        """Names of the served models, the actor first."""
        return list(served_models(self.config))

    def serving(self, model: str, *worker_types: str) -> dict[str, EngineGroup]:
        """Groups of one model, of some worker types or all."""
        found = groups_of(self.config, model)
        return {name: group for name, group in found.items() if not worker_types or group.worker_type in worker_types}


Rule = Callable[[Facts], Iterator[Problem]]
PlanRule = Callable[[Facts, LaunchPlan], Iterator[Problem]]


def group_key(name: str, field: str = "") -> str:
    """Where a group's field stands in the config."""
    return f"rollout.topology.groups.{name}" + (f".{field}" if field else "")
