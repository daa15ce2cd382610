"""What is found by importing what a config names, before anything starts."""

import sys
from pathlib import Path

import pytest

from tests.slime_launch.commands import check_refusal, slime_launch

QWEN = "+experiment=qwen3_grpo"
MODULE = """
class Data:
    def __init__(self, seed): ...
    def take(self, num_prompts): ...
    def eval_sets(self): ...

class Whole(Data):
    def state_dict(self): ...
    def load_state_dict(self, state): ...

class Narrow(Whole):
    def take(self): ...

class Reward:
    def __init__(self, strict): ...
    def score(self, samples): ...

class OneByOne:
    def score_one(self, sample): ...

def spec(config): ...

def loop(loop, again): ...

class Algorithm:
    def advantages(self, rewards_N, groups_N): ...
"""
ALLOW = "allow_targets=[theirs]"


def data(target: str) -> list[str]:
    """Another data source, without the arguments of the one that stands there."""
    return [
        f"data._target_={target}",
        *(f"~data.{name}" for name in ("task", "task_args", "question", "size", "eval_size")),
    ]


BAD = [
    (data("theirs.Data"), "error: data._target_=theirs.Data: has no method load_state_dict("),
    (data("theirs.Narrow"), "error: data._target_=theirs.Narrow: take(self) cannot be called as take("),
    (
        [*data("theirs.Whole"), "+data.length=3"],
        "error: data=theirs.Whole: cannot be called with ['length', 'seed']: got an",
    ),
    (["data._target_=theirs.Whole"], "error: data=theirs.Whole: cannot be called with"),
    (
        ["+reward.parts.theirs={_target_: theirs.Reward, weight: 1.0, strict: true}"],
        "error: reward.parts.theirs._target_=theirs.Reward: score must be async; see slime_launch.interfaces.Reward",
    ),
    (
        ["+reward.parts.theirs={_target_: theirs.Reward, weight: 1.0}"],
        "error: reward.parts.theirs=theirs.Reward: cannot be called with []: missing a required argument: 'strict'",
    ),
    (
        ["+reward.parts.theirs={_target_: theirs.OneByOne, weight: 1.0, sources: [a], deadline_s: 2, on_error: drop}"],
        "error: reward.parts.theirs._target_=theirs.OneByOne: score_one must be async; see slime_launch.interfaces.Sin",
    ),
    (
        ["model.spec._target_=theirs.spec"],
        "error: model.spec=theirs.spec: cannot be called with ['config', 'vp_stage']: got an",
    ),
    (["driver.loop._target_=theirs.loop"], "error: driver.loop=theirs.loop: cannot be called with ['loop']: missing"),
    (
        ["algorithm.policy._target_=theirs.Algorithm"],
        "error: algorithm.policy._target_=theirs.Algorithm: has no method loss(",
    ),
    (
        ["algorithm.policy.clip_lo=0.1"],
        "cannot be called with ['clip_high', 'clip_lo', 'clip_low', 'normalize_std']: got an unexpected keyword",
    ),
    ([*data("broken.Data"), "allow_targets=[broken]"], "cannot be imported (ModuleNotFoundError: No module"),
    (["trainer.worker._target_=components.rollout.worker.RolloutWorker"], "has no method train("),
    (["rollout.server.nonsense=1"], "got an unexpected keyword argument 'nonsense'"),
]


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's modules on the path, and an empty folder to work in."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "theirs.py").write_text(MODULE)
    (code / "broken.py").write_text("import not_installed_anywhere\n\nclass Data: ...\n")
    monkeypatch.syspath_prepend(str(code))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("theirs", "broken"):
        sys.modules.pop(name, None)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.mark.parametrize("mode", ["check", "run"])
@pytest.mark.parametrize(("args", "line"), BAD, ids=[args[0][:50] for args, _ in BAD])
def test_refused_before_anything_starts(
    args: list[str], line: str, mode: str, theirs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    allow = [] if any(arg.startswith("allow_targets=") for arg in args) else [ALLOW]
    check_refusal([QWEN, *args, *allow, f"mode={mode}", "hydra.run.dir=run"], line, capsys)
    assert list(theirs.iterdir()) == []


def test_a_plan_imports_none_of_it(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from slime_launch.cli import command

    assert command([QWEN, *data("broken.Data"), "allow_targets=[broken]", "mode=plan", "hydra.run.dir=run"]) == 0
    assert "broken" not in sys.modules


def test_check_shows_prompts_and_starts_nothing(tmp_path: Path) -> None:
    ran = slime_launch(
        "+experiment=glm_omni_grpo", "mode=check", "hydra.run.dir=run", cwd=tmp_path, timeout=300,
        env={"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)},
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "prompt of digits" in ran.out
    assert "<|begin_of_image|><|image|><|end_of_image|>Digit?" in ran.out
    assert "pixel_values [16, 1176], image_grid_thw [1, 3] [[1, 4, 4]]; placeholders: 4 x <|image|>" in ran.out
    assert "gives OmniProvider; 2 layers, hidden 128" in ran.out
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["plan.json"]
    assert not (tmp_path / "cache").exists()


def test_check_finds_what_megatron_and_the_data_refuse(tmp_path: Path) -> None:
    ran = slime_launch(
        QWEN, "mode=check", "hydra.run.dir=run", "+model.transformer.num_layers_in_first_pipeline_stage=1",
        "data.task=no_such_task", "reward.parts.exact.pattern='('", cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert ran.code == 2
    assert "Megatron refuses the config" in ran.err
    assert "no_such_task" in ran.err
    assert "not a regular expression" in ran.err
