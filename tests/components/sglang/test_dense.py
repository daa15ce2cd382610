"""Our forward pass of a plain Qwen3 against SGLang's own, in a scheduler of SGLang."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from components.models.qwen3 import tiny
from tests.components.sglang import stock
from tests.components.sglang.conftest import sharpen


@pytest.mark.full
def test_each_pass_equals_sglangs_own_and_a_prompt_is_prefilled_once(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "qwen", 1)
    sharpen(tmp_path / "qwen")
    command = [sys.executable, "-m", stock.__name__, str(tmp_path / "qwen")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    passes = json.loads(done.stdout.splitlines()[-1])
    assert max(each["gap"] for each in passes) < 2e-5
    prefills = [(each["requests"], each["tokens"]) for each in passes if each["kind"] == "EXTEND"]
    decodes = [each["requests"] for each in passes if each["kind"] == "DECODE"]
    prompts, others = len(stock.PROMPTS), len(stock.PROMPTS) * (stock.SAMPLES - 1)
    # the first sample of each prompt, then the last token of the prompt for each of the others
    assert prefills == [(prompts, sum(map(len, stock.PROMPTS))), (others, others)]
    assert decodes == [prompts + others] * (stock.TOKENS - 1)
