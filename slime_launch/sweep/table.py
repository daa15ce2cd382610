"""The end of a sweep: its jobs ranked on the console, and all of them in sweep.csv."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from rich.console import Console
from rich.table import Table

from slime_launch.sweep.ledger import Row, differing

CSV = "sweep.csv"
_FIELDS = ("status", "steps", "eval_before", "eval_after", "wall_s", "reason")


def write_csv(sweep_dir: Path, rows: list[Row]) -> Path:
    """``sweep.csv``: job, every override that differs, then the columns of the summary; whole or not at all."""
    file, keys = sweep_dir / CSV, differing(rows)
    part = file.with_name(file.name + ".part")
    with part.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["job", *keys, *_FIELDS])
        for row in rows:
            values = [getattr(row.summary, name, None) for name in _FIELDS[1:]]
            writer.writerow(
                [
                    row.folder.relative_to(sweep_dir),
                    *(row.overrides.get(key, "") for key in keys),
                    row.status,
                    *("" if value is None else value for value in values),
                ]
            )
    os.replace(part, file)
    return file


def print_ranking(rows: list[Row], sweep_dir: Path, console: Console) -> None:
    """The jobs, best first, and why those that failed did."""
    keys = differing(rows)
    table = Table(title=f"sweep of {len(rows)} jobs", title_justify="left")
    for name in ("", *keys, "status", "steps", "before", "after", "seconds"):
        table.add_column(name, overflow="fold")
    for rank, row in enumerate(rows, 1):
        place = str(rank) if row.score is not None else "-"
        table.add_row(place, *(row.overrides.get(key, "") for key in keys), row.status, *_figures(row))
    console.print(table)
    for row in rows:
        if row.summary is not None and row.summary.reason:
            console.print(
                f"{row.folder.relative_to(sweep_dir)}: {row.summary.reason}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
    console.print(f"files in {sweep_dir}", highlight=False, markup=False, soft_wrap=True)


def _figures(row: Row) -> tuple[str, ...]:
    summary = row.summary
    if summary is None:
        return ("", "", "", "")
    return (str(summary.steps), _percent(summary.eval_before), _percent(summary.eval_after), f"{summary.wall_s:.0f}")


def _percent(score: float | None) -> str:
    return "" if score is None else f"{score:.1%}"
