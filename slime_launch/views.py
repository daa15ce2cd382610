"""A plan for the eyes."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from slime_launch.plan import LaunchPlan

_COLUMNS = ("phase", "actor", "component", "resources", "needs", "provides")


def print_plan(plan: LaunchPlan, console: Console) -> None:
    """The plan as a table: one row an actor, in starting order."""
    table = Table(title=f"launch plan: {plan.name} on {plan.platform}", title_justify="left")
    for name in _COLUMNS:
        table.add_column(name, overflow="fold")
    for actor in plan.actors:
        component = ".".join(actor.component.split(".")[1:])
        row = (
            str(actor.phase),
            actor.name,
            component,
            str(actor.resources),
            "\n".join(actor.needs),
            "\n".join(actor.provides),
        )
        table.add_row(*row)
    console.print(table)
