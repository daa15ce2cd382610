"""Last of this folder, since they end the shared servers."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.components.sglang.conftest import Engine, Split
from tests.components.sglang.test_epd import request
from tests.servers import picture, post, processes, sampled

pytestmark = pytest.mark.servers


def test_death_is_noticed(text: Engine) -> None:
    assert text.server.failure() is None
    served = processes(text.server)[1]
    os.kill(served, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while text.server.failure() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "server text" in (text.server.failure() or "")
    assert "exit code 137" in (text.server.failure() or "")


def test_without_encoder_image_requests_fail_and_text_goes_on(split: Split) -> None:
    for encoder in split.encoders:
        encoder.stop()
    started = time.monotonic()
    reply = post(split.engine, "/generate", request([picture(8)]) | {"sampling_params": {"max_new_tokens": 2}})
    assert reply.status_code >= 400
    assert time.monotonic() - started < 30
    sampled(split.engine, input_ids=[30, 31, 32])
