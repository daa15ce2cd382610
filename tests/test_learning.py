"""The long proofs: each default experiment learns, whatever the seed, within its time, memory and gap."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runs import Run

pytestmark = [pytest.mark.full, pytest.mark.timeout(1200)]
POINTS, WALL_S, RSS_MB = 0.25, 600.0, 16_000.0


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda seed: f"seed{seed}")
def seed(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module", params=["glm_omni_grpo", "qwen3_grpo", "calculator_tools"])
def finished(
    request: pytest.FixtureRequest, seed: int, tmp_path_factory: pytest.TempPathFactory, cache_home: Path
) -> Iterator[Run]:
    """The default run; the first of each experiment makes its checkpoint too."""
    env = {"XDG_CACHE_HOME": str(cache_home)}
    run = Run(f"+experiment={request.param}", f"seed={seed}", cwd=tmp_path_factory.mktemp(request.param), env=env)
    try:
        assert run.wait(1100) == 0, run.console()
        yield run
    finally:
        run.end()


def test_it_learns_in_time(finished: Run) -> None:
    summary = finished.summary()
    print(summary)
    assert summary["eval_after"] - summary["eval_before"] >= POINTS
    assert summary["wall_s"] < WALL_S
    assert summary["peak_rss_mb"] < RSS_MB


def test_the_gap_stays_small(finished: Run) -> None:
    lines = finished.metrics()[1:]
    worst = max(line["train/train_rollout_logprob_abs_diff"] for line in lines)
    worst_token = max(line["train/train_rollout_logprob_abs_diff/max"] for line in lines)
    print(f"gap: worst step {worst:.1e}, worst token {worst_token:.1e}")
    assert worst <= 1e-4
    assert worst_token <= 1e-3
