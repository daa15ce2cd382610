"""docs/config.md: made from the schema and the YAML, and never behind them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from slime_launch.docs import MARK, PAGE, page
from slime_launch.options import EXPERIMENT, first_comment, options
from slime_launch.paths import CONF, ROOT
from slime_launch.schema import Config
from slime_launch.schema.describe import nodes, rows
from tests.slime_launch.commands import slime_launch


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / PAGE).read_text() == page(), "stale: run `make docs` and commit docs/config.md"


def test_every_key_and_option_is_there() -> None:
    text = page()
    for row in rows(Config):
        line = next(line for line in text.splitlines() if line.startswith(f"| `{row.key}` |"))
        assert row.help.replace("|", r"\|") in line and (not row.unit or f"| {row.unit} |" in line)
    for group, found in options().items():
        assert f"## {group}" in text or f"`{group}=` takes one of" in text
        assert all(f"| `{option.name}`" in text for option in found)
    assert {key for key, _ in nodes(Config)} >= {row.key for row in rows(Config)}


def test_tables_are_whole() -> None:
    for line in page().splitlines():
        if line.startswith("|"):
            assert line.replace(r"\|", "").count("|") in (3, 6), line


def test_every_option_says_what_it_is() -> None:
    silent = [str(file.relative_to(CONF)) for file in CONF.rglob("*.yaml") if not first_comment(file)]
    assert silent == []


def test_options_of_the_users_folder_come_first(tmp_path: Path) -> None:
    for name, text in {"reward/answer": "# Mine.\na: 1\n", "fruit/apple": "# @package _global_\n\n# Red.\n"}.items():
        file = tmp_path / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    found = options([tmp_path, CONF])
    assert next(option for option in found["reward"] if option.name == "answer").about == "Mine."
    assert [(option.name, option.about) for option in found["fruit"]] == [("apple", "Red.")]
    assert next(iter(found)) == EXPERIMENT
    assert "## fruit" in page([tmp_path, CONF])


@pytest.mark.parametrize("args", [[], ["+experiment=glm_omni_grpo"], ["model.hf_checkpoint=/nowhere"]])
def test_it_writes_the_page_and_nothing_else(args: list[str], tmp_path: Path) -> None:
    hidden = {**os.environ, "HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    ran = slime_launch("mode=docs", *args, cwd=tmp_path, env=hidden)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"wrote {tmp_path / PAGE}\n"
    assert (tmp_path / PAGE).read_text() == page()
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [tmp_path / PAGE]
    assert slime_launch("mode=docs", *args, cwd=tmp_path, env=hidden).code == 0  # its own page it replaces


def test_a_page_of_someone_else_is_kept(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / PAGE).write_text("# my own\n")
    ran = slime_launch("mode=docs", cwd=tmp_path)
    assert ran.code == 2
    assert ran.err == (
        f"error: mode=docs: {tmp_path / PAGE} was not made by mode=docs and is kept; "
        "move it away, or call from another folder\n"
    )
    assert (tmp_path / PAGE).read_text() == "# my own\n"
    assert not (tmp_path / "outputs").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "docs").write_text("a file")
    ran = slime_launch("mode=docs", cwd=tmp_path)
    assert ran.code == 2
    assert ran.err.startswith(f"error: mode=docs: cannot write {tmp_path / PAGE} (")
    assert len(ran.err.splitlines()) == 1


def test_the_mark_is_the_first_line() -> None:
    assert page().splitlines()[0] == MARK
