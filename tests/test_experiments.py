"""The two experiments as a user starts them, cut short, in several layouts: every file and figure of the contract."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slime_launch.plan import read_plan
from tests.runs import Run, read_jsonl

pytestmark = pytest.mark.servers

PARTS = ("exact", "format")
EVERY_STEP = {
    "step", "rollout/reward", "rollout/raw_reward", "rollout/response_len/mean", "rollout/truncated_ratio",
    "rollout/tokens_per_s", "rollout/weight_version", "train/loss", "train/grad_norm", "train/entropy", "train/ppo_kl",
    "train/pg_clipfrac", "train/train_rollout_logprob_abs_diff", "train/train_rollout_logprob_abs_diff/max",
    "perf/step_time", "perf/rollout_time", "perf/reward_time", "perf/train_time", "perf/update_weights_time",
    "perf/update_weights_mb_per_s", "perf/overhead_time", *(f"rollout/reward/{part}" for part in PARTS),
}  # fmt: skip
SAMPLE = {"step", "group", "index", "prompt", "response", "reward", "reward_parts", "weight_version", "status"}
SUMMARY = {"status", "steps", "wall_s", "startup_s", "eval_before", "eval_after", "peak_rss_mb", "output_dir"}
STEPS, PROMPTS, GROUP = 3, 4, 4
CASES = {"glm_omni_grpo": "digits", "qwen3_grpo": "spell_backward"}
LAYOUTS = ("tp=1", "tp=2", "pp=2")
QUICK = {("glm_omni_grpo", "tp=2"), ("qwen3_grpo", "pp=2")}
"""The others are long proofs: what is left to show there is a default run, which the tests of resuming start too."""
RUNS = [
    pytest.param((name, layout), marks=[] if (name, layout) in QUICK else [pytest.mark.full], id=f"{name}-{layout}")
    for name in CASES
    for layout in LAYOUTS
]


@pytest.fixture(scope="module", params=RUNS)
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cache_home: Path
) -> Iterator[Run]:
    """A run that makes its checkpoint, trains three steps and ends by itself."""
    overrides = [
        f"trainer.num_steps={STEPS}",
        f"rollout.num_prompts={PROMPTS}",
        f"rollout.group_size={GROUP}",
        "seed=3",
    ]
    name, layout = request.param
    run = Run(
        f"+experiment={name}", *overrides, "driver.eval_interval=2", f"trainer.parallel.{layout}",
        cwd=tmp_path_factory.mktemp(name), env={"XDG_CACHE_HOME": str(cache_home)},
    )  # fmt: skip
    try:
        assert run.wait(500) == 0, run.console()
        yield run
    finally:
        run.end()


def experiment(run: Run) -> str:
    return read_plan(run.folder / "plan.json").name


def test_metrics(finished: Run) -> None:
    lines, name = finished.metrics(), CASES[experiment(finished)]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    for line in lines[1:]:
        assert line.keys() >= EVERY_STEP
        assert line["train/train_rollout_logprob_abs_diff"] <= 1e-4
        assert line["train/train_rollout_logprob_abs_diff/max"] <= 1e-3
        assert line["rollout/weight_version"] == line["step"] - 1
        assert line["rollout/reward"] == pytest.approx(
            0.9 * line["rollout/reward/exact"] + 0.1 * line["rollout/reward/format"], abs=1e-6
        )
    evaluated = [line["step"] for line in lines if f"eval/{name}" in line and f"eval/{name}/greedy" in line]
    assert evaluated == [0, 2, 3]
    # the warm start leaves room on both sides
    assert 0.25 < lines[0][f"eval/{name}"] < 0.6


def test_every_image_is_encoded_by_the_encoder(finished: Run) -> None:
    counted = [line.get("rollout/encoder_requests") for line in finished.metrics()[1:]]
    assert counted == ([PROMPTS * GROUP] * STEPS if experiment(finished) == "glm_omni_grpo" else [None] * STEPS)


def test_samples(finished: Run) -> None:
    samples = read_jsonl(finished.folder / "samples.jsonl")
    assert len(samples) == STEPS * PROMPTS * GROUP
    for sample in samples:
        assert sample.keys() >= SAMPLE
        assert sample["weight_version"] == sample["step"] - 1
        parts: dict[str, Any] = sample["reward_parts"]
        assert sample["reward"] == pytest.approx(0.9 * parts["exact"] + 0.1 * parts["format"])
        assert sample["status"] in ("completed", "truncated")
    assert any(sample["reward"] > 0 for sample in samples)


def test_summary_and_folder(finished: Run) -> None:
    summary = finished.summary()
    assert summary.keys() >= SUMMARY
    assert (summary["status"], summary["steps"]) == ("completed", STEPS)
    name = CASES[experiment(finished)]
    lines = finished.metrics()
    assert summary["eval_before"] == lines[0][f"eval/{name}"]
    assert summary["eval_after"] == lines[-1][f"eval/{name}"]
    assert 1000 < summary["peak_rss_mb"] < 16_000
    assert (finished.folder.parent / "latest").resolve() == finished.folder.resolve()
    plan = read_plan(finished.folder / "plan.json")
    logged = {actor.name for actor in plan.actors}
    assert {file.stem for file in (finished.folder / "logs").glob("*.log")} >= logged
    assert "seed: 3" in (finished.folder / "config.yaml").read_text()


def test_the_console_tells_the_story(finished: Run) -> None:
    console = finished.console()
    assert "launch plan" in console
    assert re.search(r"engine-0 up in \d+ s", console)
    assert [line for line in console.splitlines() if line.startswith("step 3/3")]
    assert re.search(r"score \d+\.\d% -> \d+\.\d%", console)
    assert str(finished.folder) in console
    assert "Traceback" not in console


def test_nothing_is_left_running(finished: Run) -> None:
    assert finished.gone_within(1)


def test_keys_of_the_servers_are_nowhere(finished: Run) -> None:
    """Server logs are private and carry no bearer token."""
    for file in (finished.folder / "logs").glob("*.log"):
        assert file.stat().st_mode & 0o077 == 0
    text = "".join(file.read_text() for file in (finished.folder / "logs").glob("*.log"))
    assert not re.search(r"api_key='(?!\*)[\w-]{20,}", text)


def test_the_export_scores_the_same_in_plain_transformers(finished: Run) -> None:
    from tests.greedy import greedy_score

    name = CASES[experiment(finished)]
    config = json.loads((finished.folder / "plan.json").read_text())
    rollout = next(actor for actor in config["actors"] if actor["kind"] == "rollout")
    score = greedy_score(finished.folder / "hf", rollout["args"])
    assert score == pytest.approx(finished.metrics()[-1][f"eval/{name}/greedy"], abs=0.02)
