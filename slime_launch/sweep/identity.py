"""What makes two jobs the same: a hash of the config without what the result does not depend on; and their folders."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from slime_launch.compose import plain_config, unresolved

IGNORED = (
    "name", "mode", "resume", "plan", "sweep", "tracking", "allow_targets", "cluster.base_port",
    "cluster.start_timeout_s", "cluster.object_store_mb", "cluster.nodes_timeout_s", "trainer.timeout_s",
    "trainer.checkpoint.interval", "trainer.checkpoint.keep_last", "trainer.checkpoint.hf_interval",
)  # fmt: skip
_HASH_CHARS = 10
_LONGEST_NAME = 80


def job_hash(config: DictConfig) -> str:
    """Hexadecimal digits that jobs with the same result share.

    Values that come from the moment or the folder (``${now:...}``, ``${hydra:...}``) count as they are written.
    """
    with unresolved("now", "hydra"):
        plain = plain_config(config, keep_env=False)
    for key in IGNORED:
        _drop(plain, key.split("."))
    text = json.dumps(plain, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_CHARS]


def _drop(tree: Any, path: list[str]) -> None:
    for name in path[:-1]:
        tree = tree.get(name) if isinstance(tree, dict) else None
    if isinstance(tree, dict):
        tree.pop(path[-1], None)


def job_folder(override_dirname: str, *, _root_: DictConfig) -> str:
    """``${sweep_job:...}``: name of a job's folder, its own overrides for people and the hash for us.

    A folder that ends in the hash is the job's, however its overrides are written this time.
    """
    text = re.sub(r"(^|,)\++", r"\1", override_dirname)
    readable = re.sub(r"[^\w.,=-]+", "_", text)[:_LONGEST_NAME].lstrip(".-")
    mine = job_hash(_root_)
    there = sorted(Path(str(OmegaConf.select(_root_, "hydra.sweep.dir"))).glob(f"*{mine}"))
    return there[0].name if there else f"{readable}-{mine}" if readable else mine


def sweep_folder(name: str | None, otherwise: str) -> str:
    """``${sweep_folder:...}``: the sweep's name, or what it is called without one."""
    return otherwise if name is None else name


def register_resolvers() -> None:
    """Make both known to OmegaConf, in this process; workers that unpickle a task do it by importing it."""
    OmegaConf.register_new_resolver("sweep_job", job_folder, replace=True)
    OmegaConf.register_new_resolver("sweep_folder", sweep_folder, replace=True)
