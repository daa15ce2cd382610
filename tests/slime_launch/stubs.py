"""A component that does nothing but say where it is, for tests of placement; and plans that consist of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from slime_launch.errors import ComponentError, LogprobGapError
from slime_launch.plan import LaunchPlan, bare
from slime_launch.types import Sample

STUB = "tests.slime_launch.stubs.Payload"


class Payload:
    """Provides its own name under every name that it should."""

    def __init__(self, name: str, provides: Sequence[str], args: Mapping[str, Any]) -> None:
        self._name, self._provides, self._args = name, provides, args
        self._needs: dict[str, list[Any]] = {}
        self._broken: str | None = None

    def start(self, needs: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        self._needs = {name: list(values) for name, values in needs.items()}
        return {bare(name): self._name for name in self._provides}

    def failure(self) -> str | None:
        return self._broken

    def stop(self) -> None:
        """Nothing to give back."""

    def where(self) -> dict[str, Any]:
        """What this process sees."""
        import ray

        names = ("CUDA_VISIBLE_DEVICES", "GLOO_SOCKET_IFNAME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")
        return {
            "node": ray.get_runtime_context().get_node_id(), "pid": os.getpid(), "args": self._args,
            "needs": self._needs, **{name: os.environ.get(name) for name in names},
        }  # fmt: skip

    def break_down(self) -> None:
        """Not healthy from now on."""
        self._broken = f"{self._name} broke"

    def act(self, deeds: Mapping[str, str]) -> str:
        """Hang, die, or raise what ``deeds`` say under this actor's name; without one, answer with the name."""
        deed = deeds.get(self._name)
        if deed == "hang":
            time.sleep(900)
        elif deed == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif deed is not None:
            raise LogprobGapError(deed) if "gap" in deed else ComponentError(deed)
        return self._name

    def read(self, samples: Sequence[Sample], names: Sequence[str]) -> list[float]:
        """The sums of the first sample's media of these names."""
        return [float(samples[0].media[name].sum()) for name in names]


def stubbed(plan: LaunchPlan) -> LaunchPlan:
    """The same plan with stubs in all its seats; their arguments are kept to be looked at."""
    actors = tuple(
        replace(
            actor,
            component=STUB,
            args={"name": actor.name, "provides": list(actor.provides), "args": actor.args},
        )
        for actor in plan.actors
    )
    return replace(plan, actors=actors)
