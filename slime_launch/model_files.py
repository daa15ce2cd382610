"""The trained model's files: where its checkpoint lies, and what its config.json says. Weights are never read."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slime_launch import __version__
from slime_launch.errors import Problem
from slime_launch.paths import COMPONENTS
from slime_launch.schema import Config
from slime_launch.schema.build import nearest

AUTO = "auto"


def checkpoint_folder(config: Config) -> Path:
    """Where the weights lie.

    The user's folder, or a cache folder named by everything that the tiny one is made from; just a name where only a
    config.json was given, which is enough to plan.
    """
    if config.model.hf_checkpoint is not None:
        return Path(config.model.hf_checkpoint).expanduser().resolve()
    if config.model.hf_config is not None:
        return Path(Path(config.model.hf_config).name.removesuffix(".json"))
    made_from = json.dumps([__version__, config.model.tiny], sort_keys=True, default=str)
    digest = hashlib.sha256(made_from.encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "slime_launch" / f"{config.model.family}-{digest}"


def hf_config_file(config: Config) -> Path:
    """The config.json to plan with; ``model.hf_config`` may name one that the family ships."""
    family = COMPONENTS / "models" / config.model.family / "configs"
    if config.model.hf_config is not None:
        given = Path(config.model.hf_config).expanduser()
        shipped = family / f"{config.model.hf_config}.json"
        return shipped if shipped.is_file() else given
    if config.model.hf_checkpoint is not None:
        return checkpoint_folder(config) / "config.json"
    return family / "tiny.json"


def makes_checkpoint(config: Config) -> bool:
    """Whether the run makes its own tiny checkpoint."""
    return config.model.hf_checkpoint is None and config.model.hf_config is None


def families() -> dict[str, str]:
    """Architecture (as config.json names it) -> family, a folder of components/models."""
    known: dict[str, str] = json.loads((COMPONENTS / "models" / "families.json").read_text())
    return known


def family_of(config: Config, hf: Mapping[str, Any]) -> str:
    """The family that is asked for, or the one of config.json's architecture (``auto`` where nobody knows it)."""
    if config.model.family != AUTO:
        return config.model.family
    known = families()
    return next((known[name] for name in hf.get("architectures", ()) if name in known), AUTO)


def read_hf_config(config: Config) -> tuple[dict[str, Any], list[Problem]]:
    """(the model's config.json, []) or ({}, what is wrong with it)."""
    file = hf_config_file(config)
    key = "model.hf_config" if config.model.hf_config else "model.hf_checkpoint"
    value = config.model.hf_config or config.model.hf_checkpoint or config.model.family
    if config.model.hf_checkpoint is None and config.model.hf_config is None and not file.is_file():
        names = sorted(path.name for path in (COMPONENTS / "models").iterdir() if (path / "configs").is_dir())
        if value == AUTO:
            return {}, [Problem("model.hf_checkpoint", None, "nothing to take the family from", "name a checkpoint")]
        return {}, [Problem("model.family", value, "no such family", nearest(str(value), names))]
    if not file.is_file():
        return {}, [Problem(key, value, f"no {file}", "name a Hugging Face checkpoint folder that has a config.json")]
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        return {}, [Problem(key, value, f"{file} is not readable JSON ({error})", "mend or replace the file")]
    if not isinstance(content, dict) or not content.get("architectures"):
        mend = "use the config.json that belongs to the weights"
        return {}, [Problem(key, value, f"{file} names no architectures", mend)]
    return content, []


def media_tokens(hf: Mapping[str, Any]) -> list[int]:
    """Ids of the placeholders and brackets of images, video and audio: never sampled, no medium stands behind one."""
    names = re.compile(r"^(image|video|audio|vision)_(.*_)?token_(id|index)$")
    return sorted({value for name, value in hf.items() if names.match(name) and isinstance(value, int)})
