"""sweep: what ``-m`` does beside Hydra's sweepers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from slime_launch.schema.fields import Count, about

_FolderName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][\w.-]*$")]


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Several runs from one command line."""

    name: Annotated[_FolderName | None, about("Folder below multirun/, to go on in; null: date, time and name.")] = None
    max_jobs: Annotated[Count, about("Most jobs that one command line may ask for.", "jobs")] = 100
    keep_servers: Annotated[
        bool, about("Jobs run in turn on one Ray cluster, and on the same servers where nothing about them differs.")
    ] = True
