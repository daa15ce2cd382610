"""The schema itself: every key helps, has one default in one place, and old names lead to new ones."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml

from slime_launch.cli import command
from slime_launch.paths import CONF
from slime_launch.schema import Config
from slime_launch.schema.build import build, defaults, field_types, nested, unknown_key
from slime_launch.schema.describe import about_of, kind, nodes
from slime_launch.schema.fields import Count, Fraction, Node, Seconds, about
from slime_launch.schema.renamed import REMOVED, RENAMED


def test_every_key_has_one_line_of_help() -> None:
    found = dict(nodes(Config))
    assert "trainer.optim.lr" in found and "rollout.topology.groups.<name>.tp" in found
    assert [key for key, text in found.items() if not text.strip() or "\n" in text] == []


UNITS = {"_s": "s", "_mb": "MB", "_gb": "GB", "_tokens": "tokens"}


def leaves(cls: type, key: str = "") -> Iterator[tuple[str, Any]]:
    for name, annotation in field_types(cls).items():
        inner, _ = nested(annotation)
        yield from leaves(inner, f"{key}{name}.") if inner else [(f"{key}{name}", annotation)]


def test_a_key_whose_name_ends_in_a_unit_has_it() -> None:
    wrong = [
        (key, unit)
        for key, annotation in leaves(Config)
        for end, unit in UNITS.items()
        if key.endswith(end) and about_of(annotation)[0] != unit
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (Count, "int >= 1"),
        (Annotated[Count | None, about("x")], "int >= 1 or null"),
        (Fraction, "float > 0 <= 1"),
        (Seconds, "float > 0"),
        (Annotated[Literal["a", "b"], about("x")], "a | b"),
        (Annotated[dict[str, Node], about("x")], "component by name"),
        (dict[str, Any], "open keys"),
        (list[str], "list of text"),
        (bool, "true or false"),
    ],
)
def test_kinds(annotation: Any, text: str) -> None:
    assert kind(annotation) == text


def test_renamed_and_removed_keys_are_none_of_the_schema() -> None:
    for old in (*RENAMED, *REMOVED):
        assert unknown_key(Config, old) is not None, old
    for new in RENAMED.values():
        assert unknown_key(Config, new) is None, new


OLD = [
    ("trainer.gpus_per_rank=0.5", "trainer: {gpus_per_rank: 0.5}", "removed; leave it out: each rank takes one GPU"),
    ("reward.exact.weight=1", "reward: {exact: {weight: 1}}", "renamed; write reward.parts.exact"),
]


@pytest.mark.parametrize(("override", "text", "line"), OLD)
def test_an_old_key_shows_the_new_spelling(
    override: str, text: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert command(["mode=plan", "+experiment=qwen3_grpo", override]) == 2
    assert line in capsys.readouterr().err
    _, found = build(Config, yaml.safe_load(text))
    assert [line in str(problem) for problem in found] == [True]


def repeated(cls: type, given: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Keys of a YAML's content whose value is the schema's default."""
    default = {field.name: field for field in dataclasses.fields(cls)}
    for name, value in given.items() if isinstance(given, dict) else ():
        if name not in default:
            continue
        inner, named = nested(field_types(cls)[name])
        if inner is None:
            field = default[name]
            factory = field.default_factory
            if value == (field.default if factory is dataclasses.MISSING else factory()):
                yield f"{key}{name}", value
        else:
            parts = {f"{name}.{k}.": v for k, v in value.items()} if named else {f"{name}.": value}
            for below, part in parts.items():
                yield from repeated(inner, part, key + below)


def content(file: Path) -> Any:
    """What a YAML sets, seen from the root."""
    group = file.relative_to(CONF).parent.parts
    inner = yaml.safe_load(file.read_text()) or {}
    for part in reversed(() if group[:1] == ("experiment",) else group):
        inner = {part: inner}
    return inner


FILES = sorted(CONF.rglob("*.yaml"))
EXPERIMENTS = [file for file in FILES if file.parent.name == "experiment"]
SAYS_WHAT_IT_IS = re.compile(r"rollout\.topology\.groups\.\w+\.worker_type")
"""A topology names the type of each of its groups, the commonest among them."""


def test_a_default_stands_in_one_place() -> None:
    """An experiment may set a key back to the default that an option of its group has changed."""
    changed = {key for file in FILES if file not in EXPERIMENTS for key in flat(content(file))}
    found = {
        f"{file.relative_to(CONF)}: {key}={value}"
        for file in FILES
        for key, value in repeated(Config, content(file))
        if not SAYS_WHAT_IT_IS.fullmatch(key) and not (file in EXPERIMENTS and key in changed)
    }
    assert found == set()


def flat(node: Any, key: str = "") -> Iterator[str]:
    if isinstance(node, dict) and node:
        for name, value in node.items():
            yield from flat(value, f"{key}.{name}" if key else str(name))
    else:
        yield key


def test_a_repeated_default_is_found() -> None:
    assert list(repeated(Config, {"trainer": {"num_steps": defaults(Config)["trainer"]["num_steps"]}})) == [
        ("trainer.num_steps", 100)
    ]
