"""Which of Hydra's sweepers and launchers may stand in a config, and with what below them.

Hydra constructs whatever ``_target_`` it finds at ``hydra.sweeper`` and ``hydra.launcher``, so both are checked as they
are written, before interpolation: a target of this table, and only plain values for the keys it may have.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from slime_launch.errors import Problem

BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
OPTUNA = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
GRID = "optuna.samplers.GridSampler"


@dataclass(frozen=True)
class Plugin:
    """What one target may have.

    plain: keys that take plain values. fixed: keys that would run code, load pickles or open connections, with the one
    value that they may have. nested: keys that hold a node of another table. package: what has to be installed.
    """

    plain: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    nested: Mapping[str, Mapping[str, Plugin]] = field(default_factory=dict)
    package: str | None = None


_TPE = (
    "seed", "consider_prior", "prior_weight", "consider_magic_clip", "consider_endpoints", "n_startup_trials",
    "n_ei_candidates", "multivariate", "warn_independent_sampling",
)  # fmt: skip
_CMAES = (
    "seed", "x0", "sigma0", "warn_independent_sampling", "consider_pruned_trials", "restart_strategy", "inc_popsize",
    "use_separable_cma",
)  # fmt: skip
SAMPLERS = {
    "optuna.samplers.TPESampler": Plugin(plain=_TPE),
    "optuna.samplers.RandomSampler": Plugin(plain=("seed",)),
    "optuna.samplers.CmaEsSampler": Plugin(plain=_CMAES, fixed={"independent_sampler": None, "source_trials": None}),
    "optuna.samplers.NSGAIISampler": Plugin(
        plain=("seed", "population_size", "mutation_prob", "crossover_prob", "swapping_prob"),
        fixed={"constraints_func": None},
    ),
    GRID: Plugin(fixed={"_partial_": True}),
}
SWEEPERS = {
    BASIC_SWEEPER: Plugin(plain=("max_batch_size", "params")),
    OPTUNA: Plugin(
        plain=("n_trials", "n_jobs", "max_failure_rate", "params", "study_name"),
        # the objective is a score; a custom space is code; Optuna's storages do not work with this SQLAlchemy
        fixed={"direction": "maximize", "storage": None, "search_space": None, "custom_search_space": None},
        nested={"sampler": SAMPLERS},
        package="hydra_plugins.hydra_optuna_sweeper",
    ),
}
_QUEUE = (
    "timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "stderr_to_stdout",
)  # fmt: skip
_SLURM = (
    "partition", "qos", "comment", "constraint", "exclude", "gres", "cpus_per_gpu", "gpus_per_task", "mem_per_gpu",
    "mem_per_cpu", "account", "signal_delay_s", "max_num_timeout", "array_parallelism",
)  # fmt: skip
_SUBMITIT = "hydra_plugins.hydra_submitit_launcher"
# results come back as pickles from this folder
_QUEUE_FIXED = {"submitit_folder": "${hydra.sweep.dir}/.submitit/%j", "name": "${hydra.job.name}"}
LAUNCHERS = {
    BASIC_LAUNCHER: Plugin(),
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher": Plugin(
        plain=("n_jobs", "verbose", "timeout", "pre_dispatch", "batch_size", "max_nbytes", "mmap_mode"),
        fixed={"backend": None, "prefer": "processes", "require": None, "temp_folder": None},
        package="hydra_plugins.hydra_joblib_launcher",
    ),
    f"{_SUBMITIT}.submitit_launcher.LocalLauncher": Plugin(plain=_QUEUE, fixed=_QUEUE_FIXED, package=_SUBMITIT),
    f"{_SUBMITIT}.submitit_launcher.SlurmLauncher": Plugin(
        plain=_QUEUE + _SLURM,
        fixed={**_QUEUE_FIXED, "setup": None, "additional_parameters": {}},  # both end in the batch script
        package=_SUBMITIT,
    ),
}
PLUGINS: dict[str, Mapping[str, Plugin]] = {"sweeper": SWEEPERS, "launcher": LAUNCHERS}
_NAME = re.compile(r"[\w.@:/+-]+")


def plugin_problems(hydra: Mapping[str, Any]) -> Iterator[Problem]:
    """Whatever of hydra.sweeper and hydra.launcher is not in the table.

    hydra: the hydra node as plain containers, interpolations as they are written.
    """
    for kind, table in PLUGINS.items():
        yield from _node_problems(f"hydra.{kind}", hydra.get(kind), table)


def _node_problems(key: str, node: object, table: Mapping[str, Plugin]) -> Iterator[Problem]:
    target = node.get("_target_") if isinstance(node, dict) else None
    plugin = table.get(target) if isinstance(target, str) else None
    if not isinstance(node, dict) or plugin is None:
        allowed = ", ".join(name.rpartition(".")[2] for name in table)
        yield Problem(key, node, "not a plugin that sweeps may use", f"choose {key.replace('.', '/')} among {allowed}")
        return
    if plugin.package and importlib.util.find_spec(plugin.package) is None:
        yield Problem(key, target, "not installed", "install slime-launch[sweep]")
    for name, value in node.items():
        inner = f"{key}.{name}"
        if name in plugin.nested:
            yield from _node_problems(inner, value, plugin.nested[name])
        elif name in plugin.fixed:
            if _spelled(value) != plugin.fixed[name]:
                yield Problem(inner, value, "sealed, since Hydra would act on it", f"leave it at {plugin.fixed[name]}")
        elif name in plugin.plain:
            if not _is_plain(value):
                yield Problem(inner, value, "not a plain value", "write numbers or text, without ${...} and _keys")
        elif name != "_target_":
            yield Problem(inner, value, "unknown key", f"choose one of {', '.join(sorted(plugin.plain))}")


def _spelled(value: Any) -> Any:
    return getattr(value, "name", value)  # Hydra's plugins have enums for some words


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(
            isinstance(name, str) and _NAME.fullmatch(name) and not name.startswith("_") and _is_plain(inner)
            for name, inner in value.items()
        )
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, str):
        return "${" not in value and value.isprintable()
    return value is None or isinstance(value, bool | int | float)
