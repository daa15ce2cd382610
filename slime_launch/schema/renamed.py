"""Keys that have another spelling now, or are gone: written here whenever the schema changes one."""

from __future__ import annotations

from collections.abc import Mapping

from slime_launch.errors import Problem

RENAMED: Mapping[str, str] = {
    "reward._target_": "reward.mix._target_",
    "reward.exact": "reward.parts.exact",
    "reward.format": "reward.parts.format",
}
"""Old dotted key -> new one; what stood below the old key stands below the new one."""

REMOVED: Mapping[str, str] = {
    "trainer.gpus_per_rank": "leave it out: each rank takes one GPU",
}
"""Dotted key that is gone -> what to do instead."""


def moved(key: str, value: object = "") -> Problem | None:
    """The problem with a dotted key that was renamed or removed; None for any other key."""
    for old, new in RENAMED.items():
        if key == old or key.startswith(old + "."):
            return Problem(key, value, "renamed", f"write {new}{key.removeprefix(old)}")
    for old, mend in REMOVED.items():
        if key == old or key.startswith(old + "."):
            return Problem(key, value, "removed", mend)
    return None
