"""A tiny checkpoint to render with, and targets that lie in the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.models.qwen3 import tiny


@pytest.fixture(autouse=True)
def ours_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIME_LAUNCH_ALLOW_TARGETS", "tests")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny.write_checkpoint(folder, 1)
    return folder
