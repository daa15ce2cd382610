"""Names of weights and of what trains, looked at before a run: headers and the weight table only, no model built."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from components.megatron.checkpoint import INDEX, SINGLE, Checkpoint
from components.megatron.weights import INNER, OUTPUT, expand, listed
from components.models.base import Encoder, Family, Rule
from slime_launch.errors import Problem


def name_problems(
    args: Mapping[str, Any], hf: Mapping[str, Any], family: Family, encoders: Mapping[str, Encoder], layers: int
) -> Iterator[Problem]:
    """Tensors that the checkpoint lacks or has beyond the decoder's, and patterns that find no parameter.

    args: MegatronTrainer's. encoders: the towers that the spec builds, whose own names only a built one knows. A
    folder without weights, which stands in for a checkpoint to come, is not compared.
    """
    folder, critic = Path(args["hf_checkpoint"]), args.get("role") == "critic"
    if not any((folder / file).is_file() for file in (INDEX, SINGLE)):
        return
    names = Checkpoint(folder).names
    rules, towers = family.named_as(names, family.rules(hf), encoders)
    aliases = {rule.alias for rule in rules if rule.alias}
    wanted = expand(rules, layers)
    if critic:  # its value head is drawn, and the checkpoint's own output layer may be there or not
        wanted = expand([rule for rule in rules if not rule.megatron.startswith(OUTPUT)], layers)
        aliases |= {name for rule in rules if rule.megatron.startswith(OUTPUT) for name in rule.hf}
    apart = (*(tower.prefix for tower in towers.values()), *family.carried(hf))
    missing = wanted - names
    extra = {name for name in names - wanted - aliases if not name.startswith(apart)}
    if missing or extra:
        reason = f"does not fit the model: missing {listed(missing)}, extra {listed(extra)}"
        yield Problem("model.hf_checkpoint", str(folder), reason, "use config.json and weights that belong together")
    mine = _parameters(rules, towers, layers, names) | ({f"{OUTPUT}weight"} if critic else set())
    for key in ("freeze", "train_only"):
        for pattern in args.get(key) or ():
            if not any(re.search(pattern, name) for name in mine):
                reason = f"matches no parameter; names look like {sorted(mine)[:3]}"
                yield Problem(f"model.{key}", pattern, reason, "name parameters as Megatron does, or take it out")


def _parameters(rules: Sequence[Rule], towers: Mapping[str, Encoder], layers: int, names: Set[str]) -> set[str]:
    """Every name that a parameter may have: with and without the provider's prefix, a tower's as the checkpoint's."""
    decoder = {
        rule.megatron.format(layer)
        for rule in rules
        if not rule.tied
        for layer in (range(layers) if rule.layers is None else rule.layers)
    }
    inside = {
        f"encoders.{key}.{name.removeprefix(tower.prefix)}"
        for key, tower in towers.items()
        for name in names
        if name.startswith(tower.prefix)
    }
    return decoder | {INNER + name for name in decoder} | inside
