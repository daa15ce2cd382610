"""Where the house stands.

``conf`` and ``components`` are siblings of this package, found by path, never by bare name.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from slime_launch.errors import LaunchError

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
COMPONENTS = ROOT / "components"


def require_house() -> None:
    """Check that both siblings are there.

    Raises LaunchError naming the missing folder.
    """
    for folder in (CONF, COMPONENTS):
        if not folder.is_dir():
            raise LaunchError(
                f"{folder} is missing: conf and components belong beside {ROOT / 'slime_launch'}; "
                "reinstall slime-launch"
            )


def bind_components() -> None:
    """Make ``import components`` mean ours in this process, whatever else of that name is on sys.path."""
    require_house()
    if "components" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "components", COMPONENTS / "__init__.py", submodule_search_locations=[str(COMPONENTS)]
    )
    if spec is None or spec.loader is None:
        raise LaunchError(f"{COMPONENTS} cannot be imported; reinstall slime-launch")
    module = importlib.util.module_from_spec(spec)
    sys.modules["components"] = module
    spec.loader.exec_module(module)
