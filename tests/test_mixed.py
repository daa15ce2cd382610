"""One run whose batches mix sources: images and text, with a raw reward and without, each scored by its own parts."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runs import Run, read_jsonl

pytestmark = pytest.mark.servers

PROMPTS, GROUP, STEPS = 8, 4, 2
SOURCES = {"digits": {"digit", "format"}, "spell_backward": {"spelling", "format"}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cache_home: Path) -> Iterator[Run]:
    run = Run(
        "+experiment=mixed_sources", f"trainer.num_steps={STEPS}", f"rollout.num_prompts={PROMPTS}",
        f"rollout.group_size={GROUP}", "driver.eval_interval=0", "tracking=tensorboard",
        *(f"data.sources.{source}.eval_size=20" for source in SOURCES),
        cwd=tmp_path_factory.mktemp("mixed"), env={"XDG_CACHE_HOME": str(cache_home)},
    )  # fmt: skip
    try:
        assert run.wait(400) == 0, run.console()
        yield run
    finally:
        run.end()


def test_both_sources_are_generated_scored_trained_and_logged(finished: Run) -> None:
    samples = read_jsonl(finished.folder / "samples.jsonl")
    assert len(samples) == STEPS * PROMPTS * GROUP
    for sample in samples:
        assert sample["reward_parts"].keys() == SOURCES[sample["source"]]
        assert math.isfinite(sample["reward"])
        assert (sample["raw_reward"] is None) == (sample["source"] == "spell_backward")
    first, *steps = finished.metrics()
    # z-scores would be zero on average; the stand-in knows a good part of both tasks
    assert all(first[f"eval/{source}"] > 0.2 for source in SOURCES)
    for line in steps:
        own = [sample for sample in samples if sample["step"] == line["step"]]
        pictured = sum(sample["source"] == "digits" for sample in own)
        assert 0 < pictured < len(own), "a step of one source shows nothing"
        assert line["rollout/source/digits/samples"] == line["rollout/encoder_requests"] == pictured
        assert line["rollout/source/spell_backward/no_raw_reward"] == len(own) - pictured
        raw = [sample["reward"] if sample["raw_reward"] is None else sample["raw_reward"] for sample in own]
        assert line["rollout/raw_reward"] == pytest.approx(sum(raw) / len(raw))
        assert line["train/train_rollout_logprob_abs_diff/max"] <= 1e-3
        assert line["train/grad_norm"] > 0


def test_the_source_without_a_raw_reward_is_named(finished: Run) -> None:
    log = (finished.folder / "logs" / "rollout.log").read_text()
    assert log.count("source spell_backward gives no raw_reward") == 1
    assert list((finished.folder / "tensorboard").iterdir())
