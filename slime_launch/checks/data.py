"""Rules about data: what can be seen without reading it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from slime_launch.checks.facts import Facts, Rule
from slime_launch.data_files import DataFile, named_paths
from slime_launch.errors import Problem

_PATH = re.compile(r"\.path(\[\d+\])?$")
"""Keys of files to train on."""


def _nodes(f: Facts) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(key, node) of every data source of the run."""
    yield "data", f.config.data
    for name, settings in f.config.rollout.eval_sets.items():
        yield f"rollout.eval_sets.{name}.data", settings.data


def data_files_are_there(f: Facts) -> Iterator[Problem]:
    """Files and folders that data nodes name exist; slices can be read."""
    for key, node in _nodes(f):
        for at, text in named_paths(node, key):
            try:
                file = DataFile.parse(text).file
            except ValueError as error:
                yield Problem(at, text, str(error), "write FILE[0:1000] or FILE[-100:]")
                continue
            if text == "???" or not file.exists():
                yield Problem(at, text, "no such file or folder", "name one that is there")


def mixtures_have_weights(f: Facts) -> Iterator[Problem]:
    """Sources of a mixture have a component and a weight above 0."""
    for key, node in _nodes(f):
        sources = node.get("sources")
        for name, source in sources.items() if isinstance(sources, Mapping) else ():
            at = f"{key}.sources.{name}"
            if not isinstance(source, Mapping) or "_target_" not in source:
                yield Problem(at, source, "names no component", f"set {at}._target_")
                continue
            weight = source.get("weight")
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
                yield Problem(f"{at}.weight", weight, "not a weight above 0", "give a number, e.g. 1.0")


def held_out_rows_are_not_trained_on(f: Facts) -> Iterator[Problem]:
    """Over all nodes. Slices that meet or not by the file's size are left to the check, which reads it."""
    trained = [file for at, file in _files(f) if at.startswith("data.") and _PATH.search(at)]
    for at, held in _files(f):
        if ".eval_paths." not in at:
            continue
        for file in trained:
            if file.surely_meets(held):
                mend = "take slices that do not meet, e.g. [0:-100] and [-100:]"
                yield Problem(at, str(held), f"rows of it are trained on too, as {file}", mend)


def _files(f: Facts) -> Iterator[tuple[str, DataFile]]:
    """(key, file) of every path that can be read."""
    for key, node in _nodes(f):
        for at, text in named_paths(node, key):
            with suppress(ValueError):
                yield at, DataFile.parse(text)


RULES: tuple[Rule, ...] = (data_files_are_there, mixtures_have_weights, held_out_rows_are_not_trained_on)
