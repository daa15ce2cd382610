"""The model group that a checkpoint asks for, where the command line chooses none."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path

from hydra._internal.hydra import Hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from slime_launch.compose import compose, loader_of, parse_overrides
from slime_launch.model_files import AUTO, families


def with_family(hydra: Hydra, lines: list[str]) -> list[str]:
    """The command line, with ``model=<family>`` where the checkpoint is of another family than the YAML says.

    An experiment's model is its stand-in's; whoever names a checkpoint of his own need not name its family too.
    Says so on stderr. What the command line chooses stays chosen, whether it fits or not.
    """
    chosen = {override.key_or_group: override.value() for override in parse_overrides(hydra, lines)[0]}
    if chosen.get("model", AUTO) != AUTO or "model.family" in chosen:
        return lines
    config, _ = compose(hydra, lines)  # what is wrong with it is for the check that follows
    architecture, family = _asked_for(config) if config is not None else ("", "")
    if not family or family not in loader_of(hydra).get_group_options("model"):
        return lines
    print(f"model={family}: config.json is a {architecture}", file=sys.stderr)
    return [*(line for line in lines if not line.startswith("model=")), f"model={family}"]


def _asked_for(config: DictConfig) -> tuple[str, str]:
    """(architecture, family) of the config.json that is named, if it is of another family than the config's."""
    with suppress(OmegaConfBaseException, OSError, ValueError, AttributeError, TypeError):
        model, known = config.model, families()
        folder, file = OmegaConf.select(model, "hf_checkpoint"), OmegaConf.select(model, "hf_config")
        named = Path(file) if file else Path(folder) / "config.json"
        for architecture in json.loads(named.expanduser().read_text()).get("architectures", ()):
            if known.get(architecture, model.family) != model.family:
                return architecture, known[architecture]
    return "", ""
