"""examples/my_project, used as its README says: its YAML, its data, its reward and its layer spec."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from components.models.qwen3 import tiny
from components.rollout.prompts import Renderer
from slime_launch.plan import read_plan
from slime_launch.types import Prompt, Sample, Status
from tests.components.rollout.scripted import ask, begin
from tests.runs import Run, read_jsonl
from tests.slime_launch.commands import slime_launch

PROJECT = Path(__file__).resolve().parent.parent / "examples" / "my_project"
CONF = ("--config-dir", str(PROJECT / "conf"))
MINE = (*CONF, "+experiment=mine")
GRANT = "allow_targets=[my_project]"
PATH = {"PYTHONPATH": str(PROJECT)}


def test_it_plans(tmp_path: Path) -> None:
    ran = slime_launch(*MINE, GRANT, "mode=plan", "hydra.run.dir=run", cwd=tmp_path, env={**os.environ, **PATH})
    assert ran.code == 0, ran.err
    plan = read_plan(tmp_path / "run" / "plan.json")
    args = {actor.kind: actor.args for actor in plan.actors}
    assert "my_project.spec.layer_spec" in json.dumps(args["trainer"])
    assert "my_project.data.SortLetters" in json.dumps(args["rollout"])
    assert "my_project.rewards.Placed" in json.dumps(args["rollout"])


def test_its_targets_need_to_be_granted(tmp_path: Path) -> None:
    ran = slime_launch(*MINE, "mode=plan", cwd=tmp_path, env={**os.environ, **PATH})
    refused = [line.removeprefix("error: ").split("=")[0] for line in ran.err.splitlines()]
    assert ran.code == 2
    assert {"data._target_", "model.spec._target_", "reward.parts.placed._target_"} <= set(refused)


def test_what_is_not_importable_is_named(tmp_path: Path) -> None:
    ran = slime_launch(*MINE, GRANT, "mode=plan", cwd=tmp_path)
    assert ran.code == 2
    assert "error: data._target_=my_project.data.SortLetters: no module my_project.data; " in ran.err


def test_its_options_are_in_the_help_and_in_the_page(tmp_path: Path) -> None:
    shown = slime_launch("--config-dir", str(PROJECT / "conf"), "--help", cwd=tmp_path).out
    assert "mine" in shown and "sort_letters" in shown and "placed" in shown
    assert slime_launch(*MINE, GRANT, "mode=docs", cwd=tmp_path, env={**os.environ, **PATH}).code == 0
    page = (tmp_path / "docs" / "config.md").read_text()
    assert "| `mine` | A tiny Qwen3 with norms of our own learns to put letters in order. |" in page


@pytest.fixture
def my_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PROJECT))


@pytest.mark.parametrize(
    ("response", "score"), [("[abcd]", 1.0), ("[abdc]", 0.5), ("[abc]", 0.0), ("abcd", 0.0), ("so [abcc]", 0.75)]
)
@pytest.mark.usefixtures("my_project")
def test_its_reward(response: str, score: float) -> None:
    from my_project.rewards import Placed

    prompt = Prompt([{"role": "user", "content": "dbca"}], label="abcd")
    sample = Sample(0, 0, prompt, "", [], response, status=Status.COMPLETED)
    assert asyncio.run(Placed().score([sample])) == [score]


@pytest.mark.usefixtures("my_project")
def test_its_generate_function(tmp_path: Path) -> None:
    from my_project.generate import second_thoughts

    tiny.write_checkpoint(tmp_path, 1)
    renderer = Renderer(str(tmp_path))
    turns = [[*renderer.encode(turn), renderer.tokenizer.eos_token_id] for turn in ("[abcd]", "[abdc]")]
    engine, sample, script = begin(renderer, ask("dbca"), turns)
    first, again = asyncio.run(second_thoughts(sample, engine))
    assert (first.response, again.response) == ("[abcd]", "[abdc]")
    assert first is sample and (again.group, again.index) == (sample.group, sample.index)
    assert renderer.tokenizer.decode(script.bodies[1]["input_ids"]).endswith(
        "dbca<|im_end|>\n<|im_start|>assistant\n[abcd]<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    )
    aborted, sample, _ = begin(renderer, ask("dbca"), [{"ids": [50], "finish_reason": {"type": "abort"}}])
    assert asyncio.run(second_thoughts(sample, aborted)) is sample


@pytest.mark.usefixtures("my_project")
def test_its_norm_is_megatrons_in_value_and_gradient() -> None:
    import torch
    from my_project.norm import PreciseNorm

    config = type("Config", (), {"params_dtype": torch.float32, "sequence_parallel": False})()
    mine, theirs = PreciseNorm(config, 8, 1e-5), torch.nn.RMSNorm(8, 1e-5)
    weight_D = torch.linspace(0.5, 2.0, 8)
    grads = []
    hidden_SBD = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for norm in (mine, theirs):
        norm.load_state_dict({"weight": weight_D})
        out_SBD = norm(hidden_SBD)
        assert out_SBD.dtype == torch.float32
        grads.append(torch.autograd.grad(out_SBD.square().sum(), [hidden_SBD, norm.weight]))
    torch.testing.assert_close(mine(hidden_SBD), theirs(hidden_SBD))
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.servers
def test_it_trains(tmp_path: Path, cache_home: Path) -> None:
    """Two steps; the trainer's norm agrees with the engine's, and every score is a mix of both rewards.

    Every rollout that is not cut short has two samples, and all of them are trained on.
    """
    run = Run(
        *CONF, "+experiment=second_thoughts", GRANT, "trainer.num_steps=2", "rollout.num_prompts=4",
        "rollout.group_size=4", "driver.eval_interval=0", cwd=tmp_path, env={**PATH, "XDG_CACHE_HOME": str(cache_home)},
    )  # fmt: skip
    try:
        assert run.wait(500) == 0, run.console()
    finally:
        run.end()
    lines = run.metrics()
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert 0.1 < lines[0]["eval/sort_letters"] < 0.9
    for line in lines[1:]:
        assert line["train/train_rollout_logprob_abs_diff"] <= 1e-4
        parts = 0.7 * line["rollout/reward/exact"] + 0.3 * line["rollout/reward/placed"]
        assert line["rollout/reward"] == pytest.approx(parts, abs=1e-6)
    made = read_jsonl(run.folder / "samples.jsonl")
    assert {"Sure?" in sample["prompt"] for sample in made} == {True, False}
    assert run.gone_within(5)
