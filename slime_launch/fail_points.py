"""Places where a test ends this process, to prove that a kill loses nothing; off unless the environment names one."""

from __future__ import annotations

import os
import signal
from collections import Counter
from enum import StrEnum

ENV = "SLIME_LAUNCH_FAIL_POINT"
"""``name`` or ``name:k``: SIGKILL to this process when it comes to that place for the k-th time."""


class FailPoint(StrEnum):
    """Every place there is, in the order of a save."""

    SAVE_BEGUN = "save-begun"
    """The new folder is there, with the part that rank 0 writes at once."""
    SAVE_HALF = "save-half"
    """A rank has written some of its tensors."""
    SAVE_WRITTEN = "save-written"
    """Every tensor is written, the index is not."""
    SAVE_INDEXED = "save-indexed"
    """The trainer is done, the manifest is not there."""
    SAVE_LISTED = "save-listed"
    """The manifest is there, the folder has not got its name."""
    SAVE_NAMED = "save-named"
    """The new checkpoint is whole, older ones are not removed yet."""
    PRUNE_HALF = "prune-half"
    """An older checkpoint is half removed."""


_seen: Counter[str] = Counter()


def pass_by(point: FailPoint) -> None:
    """End this process here if a test asked for it."""
    name, _, hit = os.environ.get(ENV, "").partition(":")
    if name == point:
        _seen[name] += 1
        if _seen[name] == int(hit or 1):
            os.kill(os.getpid(), signal.SIGKILL)
