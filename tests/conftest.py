"""What every test shares."""

from pathlib import Path

import pytest

from slime_launch.paths import bind_components

bind_components()


@pytest.fixture(scope="session")
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of the test session's own: a leftover of the machine must not be what passes a test."""
    return tmp_path_factory.mktemp("cache")
