"""What a sweep would run: counted before it is enumerated, and the command lines to check before the first job."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep, ValueType

from slime_launch.errors import ConfigError, Problem
from slime_launch.sweep.seal import GRID, OPTUNA

_BOUNDS: dict[str, tuple[float, float]] = {
    "max_batch_size": (1, math.inf), "n_trials": (1, math.inf), "n_jobs": (1, math.inf), "max_failure_rate": (0, 1),
}  # fmt: skip
_NOT_SWEPT, _NOT_SWEPT_BELOW = ("mode", "name", "allow_targets"), ("hydra.", "hydra/", "sweep.")


def jobs_to_check(
    overrides: Sequence[Override], sweeper: Mapping[str, Any], max_jobs: int, loader: ConfigLoaderImpl
) -> list[list[str]]:
    """Command lines to check before a sweep starts.

    The basic sweeper's and the grid's jobs all; of what Optuna may ask for every combination of groups, and the ends
    and choices of every other key, one at a time. Raises ConfigError.
    """
    merged = list({override.get_key_element(): override for override in overrides}.values())
    swept = [override for override in merged if override.is_sweep_override()]
    found = [*_bounds(sweeper), *(problem for override in swept for problem in _sweep_problems(override, sweeper))]
    if not found:
        found = list(_too_many(swept, sweeper, max_jobs, loader))
    if found:
        raise ConfigError(found)
    if sweeper["_target_"] != OPTUNA:
        return BasicSweeper.split_arguments(merged, None)[0]
    fixed = [line for override in merged if not override.is_sweep_override() for line in _values(override)]
    return [[*fixed, *line] for line in _corners(swept, loader)]


def _bounds(sweeper: Mapping[str, Any]) -> Iterator[Problem]:
    for key, (low, high) in _BOUNDS.items():
        value = sweeper.get(key)
        if value is not None and not low <= value <= high:
            yield Problem(f"hydra.sweeper.{key}", value, "out of range", f"give {low} to {high}")


def _sweep_problems(override: Override, sweeper: Mapping[str, Any]) -> Iterator[Problem]:
    key, shown, value = override.key_or_group, _shown(override), override.value()
    if key in _NOT_SWEPT or key.startswith(_NOT_SWEPT_BELOW):
        yield Problem(key, shown, "cannot be swept", "give it one value")
    numbers = _numbers(value)
    if not all(map(math.isfinite, numbers)):
        yield Problem(key, shown, "has no end", "give finite numbers")
    elif isinstance(value, RangeSweep) and not value.step:
        yield Problem(key, shown, "has a step of 0", "give another step")
    elif isinstance(value, IntervalSweep) and numbers[0] > numbers[1]:
        yield Problem(key, shown, "ends before it starts", f"write interval({numbers[1]},{numbers[0]})")
    elif isinstance(value, IntervalSweep) and "log" in value.tags and numbers[0] <= 0:
        yield Problem(key, shown, "a logarithmic interval starts above 0", "give a positive start")
    yield from _sweeper_problems(override, sweeper)


def _sweeper_problems(override: Override, sweeper: Mapping[str, Any]) -> Iterator[Problem]:
    """What this sweeper cannot do."""
    key, shown = override.key_or_group, _shown(override)
    optuna = sweeper["_target_"] == OPTUNA
    grid = optuna and sweeper["sampler"]["_target_"] == GRID
    if override.is_interval_sweep() and (grid or not optuna):
        mend = "list values, or use hydra/sweeper=optuna with another sampler"
        yield Problem(key, shown, "an interval has no list of values to go through", mend)
    if optuna and override.value_type is ValueType.GLOB_CHOICE_SWEEP:
        yield Problem(key, shown, "Optuna takes no glob", "list the options")


def _too_many(
    swept: Sequence[Override], sweeper: Mapping[str, Any], max_jobs: int, loader: ConfigLoaderImpl
) -> Iterator[Problem]:
    mend = "sweep over fewer values, or raise sweep.max_jobs"
    shown = " ".join(f"{override.key_or_group}={_shown(override)}" for override in swept)
    sampled = sweeper["_target_"] == OPTUNA and sweeper["sampler"]["_target_"] != GRID
    # what Optuna draws from is enumerated for the combinations of groups and where a range is shuffled
    listed = [override for override in swept if not sampled or _is_listed(override, loader)]
    jobs = math.prod(map(count, listed))
    if jobs > max_jobs:
        yield Problem("sweep.max_jobs", max_jobs, f"{shown} makes {jobs} jobs", mend)
    if sampled and sweeper["n_trials"] > max_jobs:
        yield Problem("hydra.sweeper.n_trials", sweeper["n_trials"], f"above sweep.max_jobs={max_jobs}", mend)


def _is_listed(override: Override, loader: ConfigLoaderImpl) -> bool:
    value = override.value()
    return _is_group(override, loader) or (isinstance(value, RangeSweep) and value.shuffle)


def count(override: Override) -> int:
    """How many values a discrete sweep has, without going through them."""
    value = override.value()
    if isinstance(value, RangeSweep):
        start, stop = _numbers(value)
        if isinstance(value.range(), range):
            return len(range(int(start), int(stop), int(value.step)))
        return max(0, math.ceil((stop - start) / float(value.step)))
    if isinstance(value, ChoiceSweep):
        return len(value.list)
    return len(list(override.sweep_string_iterator()))


def _corners(swept: Sequence[Override], loader: ConfigLoaderImpl) -> Iterator[list[str]]:
    groups = [_values(override) for override in swept if _is_group(override, loader)]
    others = [_values(override) for override in swept if not _is_group(override, loader)]
    firsts = [lines[0] for lines in others]
    for chosen in itertools.product(*groups):
        yield [*chosen, *firsts]
    chosen = tuple(lines[0] for lines in groups)
    for index, lines in enumerate(others):
        for line in lines[1:]:
            yield [*chosen, *firsts[:index], line, *firsts[index + 1 :]]


def _is_group(override: Override, loader: ConfigLoaderImpl) -> bool:
    return bool(loader.repository.group_exists(override.key_or_group))


def _values(override: Override) -> list[str]:
    """The override with its one value, with each of its choices, or with both ends of its range or interval."""
    key, value = override.get_key_element(), override.value()
    if not override.is_sweep_override():
        return [override.input_line or ""]
    if isinstance(value, RangeSweep | IntervalSweep):
        return [f"{key}={number}" for number in _numbers(value)]
    return [f"{key}={choice}" for choice in override.sweep_string_iterator()]


def _numbers(value: object) -> list[float]:
    if isinstance(value, RangeSweep):
        return [value.start or 0, value.stop or 0]
    if isinstance(value, IntervalSweep):
        return [value.start or 0, value.end or 0]
    return []


def _shown(override: Override) -> str:
    return (override.input_line or "").partition("=")[2]
