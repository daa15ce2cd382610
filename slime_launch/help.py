"""``slime-launch --help``: how to use it, on one screen."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from slime_launch.options import EXPERIMENT, Option, options

EXAMPLES: tuple[tuple[str, str], ...] = (
    ("slime-launch +experiment=glm_omni_grpo", "train; runs on any machine"),
    ("slime-launch +experiment=glm_omni_grpo mode=plan", "show what would start"),
    ("slime-launch rollout/topology=dp trainer.optim.lr=1e-4 ...", "choose an option, set a key"),
    ("slime-launch -m +experiment=qwen3_grpo seed=1,2,3", "one run after another"),
    ("slime-launch --config-dir my_conf +experiment=mine", "with YAML of your own"),
)
SWITCHES: tuple[tuple[str, str], ...] = (
    ("--config-dir DIR", "a folder with YAML of your own, one sub-folder a group"),
    ("-m", "every combination of the values given with commas"),
    ("--cfg job [--package KEY]", "print the values that a command line gives"),
    ("--info defaults-tree", "print which YAML gave what"),
    ('eval "$(slime-launch -sc install=bash)"', "complete keys, groups and options in this shell"),
)
EXITS = (
    "Exit codes: 0 done; 1 failed; 2 refused, nothing was started, every problem on a line of its own; "
    "130, 143 stopped by a signal."
)
KEYS = "Keys with their types, units and defaults: docs/config.md, which mode=docs writes."
_NARROW, _WIDE = 60, 110


def help_text(conf: Sequence[Path], modes: Mapping[str, Callable[..., object]], width: int | None = None) -> str:
    """The whole screen.

    conf: the folders of YAML groups, the user's first. modes: what does each mode; its docstring says what that is.
    width: columns to wrap at; None takes the terminal's.
    """
    width = width or max(_NARROW, min(_WIDE, shutil.get_terminal_size((100, 40)).columns))
    parts = [
        "slime-launch: RL post-training from YAML. It checks everything, then starts what the plan shows.",
        "Usage: slime-launch [key=value ...] [group=option ...]",
        _columns(EXAMPLES, width),
        "Modes: mode=NAME\n" + _columns([(name, _summary(name, do)) for name, do in modes.items()], width),
        "Groups: group=option (* is the default)\n" + _columns(_groups(options(conf)), width),
        "More\n" + _columns(SWITCHES, width),
        textwrap.fill(EXITS, width) + "\n" + textwrap.fill(KEYS, width),
    ]
    return "\n\n".join(parts)


def _summary(name: str, do: Callable[..., object]) -> str:
    """The first line of a mode's docstring, without its own name."""
    line = inspect.cleandoc(do.__doc__ or "").split("\n")[0].removeprefix(f"mode={name}: ").rstrip(".")
    return line + (" (the default)" if name == "run" else "")


def _groups(found: Mapping[str, Sequence[Option]]) -> list[tuple[str, str]]:
    return [
        (
            f"+{group}" if group == EXPERIMENT else group,
            "  ".join(option.name + ("*" if option.is_default else "") for option in chosen),
        )
        for group, chosen in found.items()
    ]


def _columns(lines: Sequence[tuple[str, str]], width: int) -> str:
    """Two columns; the second one wraps, and starts below the first where that leaves it too narrow."""
    left = max(len(first) for first, _ in lines) + 4
    if width - left < _NARROW // 3:
        hang = textwrap.TextWrapper(width, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False)
        return "\n".join(f"  {first}\n{hang.fill(second)}" for first, second in lines)
    wrap = textwrap.TextWrapper(width - left, break_on_hyphens=False)
    return "\n".join(
        f"  {head:<{left - 2}}{line}".rstrip()
        for first, second in lines
        for head, line in zip([first] + [""] * 99, wrap.wrap(second) or [""], strict=False)
    )
