"""Where the house stands.

``conf`` and ``components`` are siblings of this package, found by path, never by bare name.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from slime_launch.errors import ConfigError, Problem

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
COMPONENTS = ROOT / "components"

_MEND = "reinstall slime-launch"


def require_house(conf: Path = CONF, components: Path = COMPONENTS) -> None:
    """Check that both siblings are there.

    Raises ConfigError naming both paths.
    """
    missing = [folder for folder in (conf, components) if not folder.is_dir()]
    reason = f"no such folder: {conf} and {components} belong beside {ROOT / 'slime_launch'}"
    if missing:
        raise ConfigError([Problem(folder.name, folder, reason, _MEND) for folder in missing])


def bind_components() -> None:
    """Make ``import components`` mean ours in this process, whatever else of that name is on sys.path.

    Raises ConfigError when a sibling is missing, or when another ``components`` was imported before.
    """
    require_house()
    if loaded := sys.modules.get("components"):
        places = [Path(place).resolve() for place in getattr(loaded, "__path__", [])]
        if places != [COMPONENTS]:
            reason = f"another package of this name is imported already, ours is {COMPONENTS}"
            raise ConfigError([Problem("components", ", ".join(map(str, places)), reason, "rename the other one")])
        return
    spec = importlib.util.spec_from_file_location(
        "components", COMPONENTS / "__init__.py", submodule_search_locations=[str(COMPONENTS)]
    )
    if spec is None or spec.loader is None:
        raise ConfigError([Problem("components", COMPONENTS, "cannot be imported", _MEND)])
    module = importlib.util.module_from_spec(spec)
    sys.modules["components"] = module
    spec.loader.exec_module(module)
