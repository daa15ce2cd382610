"""What every test shares."""

from pathlib import Path

import hypothesis
import pytest

from slime_launch.paths import bind_components

bind_components()
# the machine may be busy: how long one example takes says nothing
hypothesis.settings.register_profile("busy", deadline=None)
hypothesis.settings.load_profile("busy")


@pytest.fixture(scope="session")
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of the test session's own: a leftover of the machine must not be what passes a test."""
    return tmp_path_factory.mktemp("cache")
