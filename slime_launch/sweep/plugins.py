"""Our defaults for Hydra's sweeper plugins."""

from __future__ import annotations

import copy

from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType

_SWEEPERS, _OPTUNA = "hydra/sweeper", "hydra/sweeper/optuna.yaml"
_DEFAULTS = {
    "direction": "maximize",  # of a score
    "n_jobs": 1,  # each trial knows those before it
    "max_failure_rate": 1.0,  # a failed job does not stop the sweep
}


def store_defaults() -> None:
    """Put our defaults into Hydra's ConfigStore, once Hydra has found its plugins.

    A YAML of the plugin's own name would be refused by Hydra, since the plugin's node has a defaults list.
    """
    store = ConfigStore.instance()
    if store.get_type(_OPTUNA) is not ObjectType.CONFIG:
        return
    found = store.load(_OPTUNA)
    node = copy.deepcopy(found.node)
    for key, value in _DEFAULTS.items():
        node[key] = value
    store.store(name="optuna", node=node, group=_SWEEPERS, package=found.package, provider=found.provider)
