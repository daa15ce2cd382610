"""Lets the tests' own parts be named by a _target_; nobody waits between tries."""

import pytest
import stamina

from slime_launch.targets import ALLOW_ENV


@pytest.fixture(autouse=True, scope="package")
def _ours():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ALLOW_ENV, "tests")
        with stamina.set_testing(True, attempts=100, cap=True):
            yield
