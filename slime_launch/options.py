"""The YAML options of each group, as files: what the help and the reference page list. Composes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from hydra.core.hydra_config import HydraConfig

from slime_launch.paths import CONF

ROOT_FILE = "config.yaml"
EXPERIMENT = "experiment"


@dataclass(frozen=True)
class Option:
    """One YAML of a group. about: its first comment line; empty where it starts without one."""

    name: str
    about: str
    is_default: bool


def folders() -> list[Path]:
    """The folders of YAML groups of the config that Hydra has composed in this process, the user's first."""
    sources = HydraConfig.get().runtime.config_sources
    return [Path(source.path) for source in sources if source.schema == "file"]


def options(folders: Sequence[Path] = (CONF,)) -> dict[str, list[Option]]:
    """Group -> its options by name: experiments first, then the groups in the order of our root's defaults list.

    A group of several folders has the options of all; of two files with one name the first folder's counts.
    """
    chosen = _defaults()
    files = {file.relative_to(folder): file for folder in reversed(folders) for file in folder.rglob("*.yaml")}
    order = [EXPERIMENT, *chosen]
    groups: dict[str, list[Option]] = {}
    for short in sorted(files):
        group = short.parent.as_posix()
        if group != "." and short.parts[0] != "hydra":
            option = Option(short.stem, first_comment(files[short]), chosen.get(group) == short.stem)
            groups.setdefault(group, []).append(option)

    def place(group: str) -> tuple[int, int, str]:
        top, last = group.split("/")[0], len(order)
        return order.index(top) if top in order else last, order.index(group) if group in order else last, group

    return {group: groups[group] for group in sorted(groups, key=place)}


def first_comment(file: Path) -> str:
    """The first comment line above a YAML's content, Hydra's ``@package`` line aside."""
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        text = line.strip()
        if text and not text.startswith("#"):
            break
        text = text.lstrip("# ")
        if text and not text.startswith("@package"):
            return text
    return ""


def _defaults() -> dict[str, str]:
    """Group -> the option that our root's defaults list takes."""
    root = yaml.safe_load((CONF / ROOT_FILE).read_text())
    pairs = [item for entry in root["defaults"] if isinstance(entry, dict) for item in entry.items()]
    return {group: option for group, option in pairs if not group.startswith("override ")}
