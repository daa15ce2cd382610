"""Several data sources as one, by weight."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Any

from slime_launch.data_files import FileRows
from slime_launch.errors import ComponentError
from slime_launch.interfaces import DataSource, Fits, OfFiles, Reports
from slime_launch.targets import instantiate
from slime_launch.types import Metrics, Prompt

_CIRCLE = 2**64
_GOLDEN_STEP = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio: steps of it spread evenly over the circle from any start on."""


class Mixture:
    """Draws each prompt from one of ``sources``, a share of ``weight`` / all weights from each.

    sources: name -> ``{_target_: ..., weight: ..., **arguments}``; the name becomes the prompts' ``source``.
    Which source a draw takes follows from the seed and the draw's number alone: the points of a golden-ratio Kronecker
    sequence on a circle that the weights divide, so that the shares are kept to a few draws over any stretch, not only
    in the long run (Kuipers and Niederreiter, Uniform Distribution of Sequences, 1974, chapter 2, section 3).
    Raises ComponentError when there is no source or a weight is not above zero.
    """

    def __init__(self, sources: Mapping[str, Mapping[str, Any]], seed: int) -> None:
        if not sources:
            raise ComponentError("data.sources: empty; name at least one source")
        self._names, self._seed, self._drawn = list(sources), seed, 0
        weights = [_weight(name, node) for name, node in sources.items()]
        self._shares = [weight / sum(weights) for weight in weights]
        self._bounds = [round(bound * _CIRCLE) for bound in accumulate(self._shares)]
        self._start = int.from_bytes(hashlib.sha256(f"mixture/{seed}".encode()).digest()[:8])
        self._sources = {name: _source(name, node, seed) for name, node in sources.items()}

    def fit(self, length_of: Callable[[Prompt], int]) -> None:
        """See slime_launch.interfaces.Fits."""
        for source in self._sources.values():
            if isinstance(source, Fits):
                source.fit(length_of)

    def take(self, num_prompts: int) -> list[Prompt]:
        """The next prompts; each source goes round by itself."""
        names = [self.name_of(self._drawn + number) for number in range(num_prompts)]
        given = {name: iter(source.take(names.count(name))) for name, source in self._sources.items()}
        self._drawn += num_prompts
        return [replace(next(given[name]), source=name) for name in names]

    def name_of(self, draw: int) -> str:
        """Which source gives the run's ``draw``-th prompt, from 0."""
        point = (self._start + draw * _GOLDEN_STEP) % _CIRCLE
        return self._names[min(bisect_right(self._bounds, point), len(self._names) - 1)]

    def eval_sets(self) -> dict[str, list[Prompt]]:
        """Every source's sets: its only one is called as the source is, several are called ``<source>_<set>``.

        Raises ComponentError when two come by one name.
        """
        named: dict[str, list[Prompt]] = {}
        for name, source in self._sources.items():
            sets = source.eval_sets()
            for held, prompts in sets.items():
                full = name if len(sets) == 1 else f"{name}_{held}"
                if full in named:
                    raise ComponentError(f"data.sources.{name}: there are two held-out sets called {full}; rename it")
                named[full] = [replace(prompt, source=name) for prompt in prompts]
        return named

    def trained_rows(self) -> list[FileRows]:
        """See slime_launch.interfaces.OfFiles."""
        return [
            rows for source in self._sources.values() if isinstance(source, OfFiles) for rows in source.trained_rows()
        ]

    def held_rows(self) -> dict[str, list[FileRows]]:
        """See slime_launch.interfaces.OfFiles; ``<source>.<set>``, for messages."""
        return {
            f"{name}.{held}": rows
            for name, source in self._sources.items() if isinstance(source, OfFiles)
            for held, rows in source.held_rows().items()
        }  # fmt: skip

    def metrics(self) -> Metrics:
        """What the sources tell, under their names here; a mixture's own sources under its name and theirs."""
        told: Metrics = {}
        for name, source in self._sources.items():
            if isinstance(source, Reports):
                told |= {f"data/{name}/{_below(source, key)}": value for key, value in source.metrics().items()}
        return told

    def state_dict(self) -> dict[str, Any]:
        """Draws so far and where each source stands."""
        return {
            "drawn": self._drawn,
            "seed": self._seed,
            "shares": dict(zip(self._names, self._shares, strict=True)),
            "sources": {name: source.state_dict() for name, source in self._sources.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises ComponentError for a state of another seed, of other sources or weights.
        """
        mine = self.state_dict()
        for key in ("seed", "shares"):
            if list(_items(state.get(key))) != list(_items(mine[key])):
                raise ComponentError(
                    f"data.sources: the saved position is of {key} {state.get(key)} and this run's is {mine[key]}; "
                    "give what the run had"
                )
        for name, source in self._sources.items():
            try:
                source.load_state_dict(state["sources"][name])
            except ComponentError as error:
                raise ComponentError(f"data.sources.{name}: {error}") from error
        self._drawn = state["drawn"]


def _below(source: DataSource, key: str) -> str:
    """What a source's metric is called below its name: all of it for a mixture, the last word of another's."""
    return key.removeprefix("data/") if isinstance(source, Mixture) else key.rpartition("/")[2]


def _items(value: Any) -> Any:
    return value.items() if isinstance(value, Mapping) else [value]


def _weight(name: str, node: Mapping[str, Any]) -> float:
    weight = node.get("weight")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise ComponentError(
            f"data.sources.{name}.weight={weight}: must be a number above zero; drop the source to leave it out"
        )
    return float(weight)


def _source(name: str, node: Mapping[str, Any], seed: int) -> DataSource:
    try:
        source = instantiate({key: value for key, value in node.items() if key != "weight"}, seed=seed)
    except (ComponentError, TypeError, ValueError) as error:
        raise ComponentError(f"data.sources.{name}: {error}") from error
    if not isinstance(source, DataSource):
        raise ComponentError(f"data.sources.{name}._target_={node['_target_']}: is not a data source")
    return source
