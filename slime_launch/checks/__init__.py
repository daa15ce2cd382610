"""What every run must satisfy before anything starts.

Each rule is a function of the facts that yields all its problems; each problem names its key and the mend.
"""

from __future__ import annotations

from slime_launch.checks import (
    batch,
    data,
    layout,
    machine,
    media,
    model,
    nodes,
    rewards,
    routing,
    sampling,
    servers,
    topology,
    transformer,
)
from slime_launch.checks.facts import Facts, Rule
from slime_launch.errors import Problem
from slime_launch.machine import Machine
from slime_launch.model_files import read_hf_config
from slime_launch.resolve import resolve
from slime_launch.schema import Config

RULES: tuple[Rule, ...] = (
    *nodes.RULES, *data.RULES, *media.RULES, *rewards.RULES, *model.RULES, *transformer.RULES, *layout.RULES,
    *batch.RULES, *sampling.RULES, *topology.RULES, *routing.RULES, *servers.RULES, *machine.RULES,
)  # fmt: skip


def problems(config: Config, on: Machine) -> list[Problem]:
    """Everything wrong with a typed config on this machine; empty when it may run.

    What a plan shows is looked at only once a plan can be made.
    """
    if config.mode in nodes.RUNLESS_MODES:
        return []
    hf, found = read_hf_config(config)
    facts = Facts(config, on, hf)
    found += [problem for rule in RULES for problem in rule(facts)]
    if not found:
        plan = resolve(config, on, config.cluster.base_port, hf)
        found = [problem for rule in machine.PLAN_RULES for problem in rule(facts, plan)]
    return found
