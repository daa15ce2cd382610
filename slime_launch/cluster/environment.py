"""Environment variables of every process of a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from slime_launch.paths import ROOT
from slime_launch.targets import ALLOW_ENV


def actor_environment(allow_targets: Sequence[str]) -> dict[str, str]:
    """What every actor gets, wherever it runs: our house first, nothing from the hub, one OMP thread by default.

    Holds no secrets, since Ray logs it.
    """
    # absolute, since actors work in the run folder
    paths = [str(ROOT), *map(os.path.abspath, filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))]
    return {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "PYTHONSAFEPATH": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        ALLOW_ENV: ",".join(allow_targets),
    }


def token_environment(token_file: Path) -> dict[str, str]:
    """Ray's token authentication with the token in a file."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}


def loopback_environment() -> dict[str, str]:
    """What keeps Ray, and everything below it, on the loopback interface and quiet."""
    return {
        # without "clusters" Ray keeps 127.0.0.1 instead of looking up a LAN address
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # engines would inherit Ray's 15, and lose to anything else on the machine
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
    }
