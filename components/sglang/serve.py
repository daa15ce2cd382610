"""The first process of a server: reads its arguments from a private file, so that no key stands on a command line.

Run by path as a script. The file holds ``{"program": "engine" | "router", "args": {...}, "secrets": [...]}``.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# This module is imported first in each process that the server spawns, too. On CPU the packages named here are never
# called, and cost every process 4 s and 280 MB.
for _package in filter(None, os.environ.get("SLIME_LAUNCH_SKIP_IMPORTS", "").split(",")):
    sys.modules[_package] = None  # type: ignore[assignment]


def run_engine(args: dict[str, Any]) -> None:
    """Serve an engine or an encoder; ``args`` are SGLang ServerArgs fields."""
    from sglang.srt.plugins import load_plugins

    _require_plugin()
    load_plugins()
    from sglang.launch_server import run_server
    from sglang.srt.server_args import ServerArgs
    from sglang.srt.utils import kill_process_tree

    try:
        run_server(ServerArgs(**args))
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


def run_router(args: dict[str, Any]) -> None:
    """Serve a router; ``args`` are sglang_router RouterArgs fields.

    Not by ``sglang_router.launch_router``, which imports all of SGLang for a balancer that is not used here (12 s).
    """
    from sglang_router.router import Router
    from sglang_router.router_args import RouterArgs

    Router.from_args(RouterArgs(**args)).start()


PROGRAMS: dict[str, Callable[[dict[str, Any]], None]] = {"engine": run_engine, "router": run_router}


def _require_plugin() -> None:
    """Without its entry point SGLang would start unchanged and fail in ways that are hard to trace."""
    from importlib.metadata import entry_points

    if not any(
        point.value == "components.sglang.plugin:register" for point in entry_points(group="sglang.srt.plugins")
    ):
        sys.exit("the SGLang plugin of slime-launch is not installed; run: pip install -e . (in the project's folder)")


def hide_in_logs(secrets: Sequence[str]) -> None:
    """Replace ``secrets`` in every log message of this process: SGLang logs its arguments, keys included."""
    make = logging.getLogRecordFactory()

    def clean(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        message = record.getMessage()
        if any(secret in message for secret in secrets):
            for secret in secrets:
                message = message.replace(secret, "***")
            record.msg, record.args = message, ()
        return record

    logging.setLogRecordFactory(clean)


def main(path: str) -> None:
    """Read the file, remove it and serve."""
    spec = json.loads(Path(path).read_text())
    Path(path).unlink()
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    hide_in_logs(spec["secrets"])
    PROGRAMS[spec["program"]](spec["args"])


if __name__ == "__main__":
    main(sys.argv[1])
