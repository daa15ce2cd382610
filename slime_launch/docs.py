"""The reference page of the configuration, made from the schema and the YAML options: ``mode=docs``."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path

from slime_launch.errors import ConfigError, Problem
from slime_launch.options import EXPERIMENT, Option, options
from slime_launch.paths import CONF
from slime_launch.schema import Config
from slime_launch.schema.build import field_types, nested
from slime_launch.schema.describe import Row, rows

PAGE = Path("docs", "config.md")
MARK = "<!-- Made by `slime-launch mode=docs`: change the schema or the YAML, not this page. -->"
INTRO = """\
Every key of a run, from the typed schema that each config is checked against, and the YAML options of each group.
`key=value` on the command line sets a key, `group=option` takes another YAML of a group, and a YAML of your own under
`--config-dir` may do both. `slime-launch +experiment=NAME --cfg job` shows the values that a command line gives.

A *default* is what a key is when no YAML says otherwise; an option of its group may (`rollout/default.yaml` sets keys
of `rollout`). *Component* means a node with a `_target_`, the class or function that does the work, and its arguments.
*Open keys* are handed on as they are, their names checked against the installed package that takes them. `<name>` is a
name of your own. Ranges are part of the type."""


def write_page(folder: Path, conf: Sequence[Path]) -> Path:
    """Write the page below ``folder``; returns its absolute path.

    Raises ConfigError where a page stands that someone else wrote, or where none can be written.
    """
    file = (folder / PAGE).absolute()
    try:
        if file.exists() and not file.read_text(encoding="utf-8").startswith(MARK):
            mend = "move it away, or call from another folder"
            raise ConfigError([Problem("mode", "docs", f"{file} was not made by mode=docs and is kept", mend)])
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page(conf), encoding="utf-8")
    except (OSError, UnicodeError) as error:
        mend = "call from a folder that you can write to"
        raise ConfigError([Problem("mode", "docs", f"cannot write {file} ({error})", mend)]) from error
    return file


def page(conf: Sequence[Path] = (CONF,)) -> str:
    """The whole page as Markdown; ``conf`` are the folders of YAML groups, the first one's options winning."""
    found = options(conf)
    sections = [name for name, note in field_types(Config).items() if nested(note)[0] or name in found]
    by_section: dict[str, list[Row]] = {name: [] for name in ("", *sections)}
    for row in rows(Config):
        first = row.key.split(".")[0]
        by_section[first if first in sections else ""].append(row)
    parts = [MARK, "# Configuration reference", INTRO, "## The run", _key_table(by_section[""])]
    parts += ["## experiment", "Whole runs: `+experiment=NAME`.", _option_table(found.pop(EXPERIMENT, []))]
    for name in sections:
        parts += [f"## {name}", *_docstring(name), _key_table(by_section[name])]
        for group in [group for group in found if group.split("/")[0] == name]:
            parts += [f"`{group}=` takes one of", _option_table(found.pop(group))]
    for group, chosen in found.items():
        parts += [f"## {group}", f"`+{group}=` takes one of", _option_table(chosen)]
    return "\n\n".join(parts) + "\n"


def _docstring(name: str) -> list[str]:
    cls, _ = nested(field_types(Config)[name])
    return [inspect.cleandoc(cls.__doc__ or "")] if cls else []


def _key_table(found: Iterable[Row]) -> str:
    head = ["key", "type and range", "default", "unit", "help"]
    return _table(head, [[_code(row.key), row.kind, _code(row.default), row.unit, row.help] for row in found])


def _option_table(found: Iterable[Option]) -> str:
    return _table(
        ["option", "what it is"],
        [[_code(option.name) + (", the default" if option.is_default else ""), option.about] for option in found],
    )


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in cells)
