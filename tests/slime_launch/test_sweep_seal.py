"""What may stand at hydra.sweeper and hydra.launcher, and how many jobs may be asked for: refused before any job."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from slime_launch.cli import command
from slime_launch.sweep.space import count

QWEN = "+experiment=qwen3_grpo"
OPTUNA = "hydra/sweeper=optuna"
LR = "trainer.optim.lr=interval(1e-5,1e-3)"

BAD = [
    (
        [OPTUNA, LR, "hydra.sweeper.custom_search_space=os.system"],
        "hydra.sweeper.custom_search_space=os.system: sealed",
    ),
    ([OPTUNA, LR, "hydra.sweeper.storage='sqlite:///x.db'"], "hydra.sweeper.storage=sqlite:///x.db: sealed"),
    ([OPTUNA, LR, "hydra.sweeper.direction=minimize"], "hydra.sweeper.direction=minimize: sealed"),
    ([OPTUNA, LR, "hydra.sweeper.sampler._target_=os.system"], "hydra.sweeper.sampler={'_target_': 'os.system'"),
    ([OPTUNA, LR, "+hydra.sweeper.sampler.x._target_=os.system"], "hydra.sweeper.sampler.x={'_target_': 'os.system'}"),
    ([OPTUNA, LR, "hydra.sweeper.study_name=${oc.env:HOME}"], "hydra.sweeper.study_name=${oc.env:HOME}: not a plain"),
    ([OPTUNA, LR, "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0: out of range"),
    ([OPTUNA, LR, "hydra.sweeper.n_jobs=0"], "hydra.sweeper.n_jobs=0: out of range"),
    ([OPTUNA, LR, "hydra.sweeper.max_failure_rate=2"], "hydra.sweeper.max_failure_rate=2.0: out of range"),
    ([OPTUNA, LR, "hydra/sweeper/sampler=grid"], "trainer.optim.lr=interval(1e-5,1e-3): an interval has no list"),
    ([OPTUNA, "algorithm=glob(*)"], "algorithm=glob(*): Optuna takes no glob"),
    ([OPTUNA, "trainer.optim.lr=tag(log,interval(0,1))"], "a logarithmic interval starts above 0"),
    ([OPTUNA, "trainer.optim.lr=interval(1e-3,1e-5)"], "ends before it starts; write interval(1e-05,0.001)"),
    ([OPTUNA, "trainer.optim.lr=interval(1e-5,inf)"], "trainer.optim.lr=interval(1e-5,inf): has no end"),
    ([OPTUNA, "trainer.optim.lr=interval(-1.0,1e-3)"], "trainer.optim.lr=-1.0: expected float > 0.0"),
    ([OPTUNA, "rollout.temperature=choice(1.0,0)"], "rollout.temperature=0: expected float > 0.0"),
    ([OPTUNA, LR, "hydra.sweeper.n_trials=101"], "hydra.sweeper.n_trials=101: above sweep.max_jobs=100"),
    ([OPTUNA, "hydra/sweeper/sampler=grid", "seed=range(0,3000000)"], "makes 3000000 jobs"),
    ([OPTUNA, "seed=shuffle(range(0,3000000))"], "makes 3000000 jobs"),
    ([LR], "trainer.optim.lr=interval(1e-5,1e-3): an interval has no list of values"),
    (["seed=range(0,3000000)"], "sweep.max_jobs=100: seed=range(0,3000000) makes 3000000 jobs; sweep over fewer"),
    (["seed=range(0,11)", "trainer.optim.lr=range(0.1,1.05,0.1)"], "makes 110 jobs"),
    (["seed=1,2,3", "sweep.max_jobs=2"], "sweep.max_jobs=2: seed=1,2,3 makes 3 jobs"),
    (["seed=range(0,4,0)"], "seed=range(0,4,0): has a step of 0"),
    (["seed=1,2", "sweep.max_jobs=0"], "sweep.max_jobs=0: expected int >= 1"),
    (["seed=1,2", "sweep.name=../x"], "sweep.name=../x: expected str matching regex"),
    (["sweep.name=a,b"], "sweep.name=a,b: cannot be swept"),
    (["mode=plan,run"], "mode=plan,run: cannot be swept"),
    (["seed=1,2", "hydra.sweeper.max_batch_size=0"], "hydra.sweeper.max_batch_size=0: out of range"),
    (["seed=1,x,2,y"], "error: seed=x: expected int, got str; give int\nerror: seed=y: expected int, got str"),
    (["trainer.optim.lrr=1,2"], "trainer.optim.lrr=1: unknown key; did you mean trainer.optim.lr?"),
    (["seed=1,2", "hydra.sweep.subdir=x"], "hydra.sweep.subdir=x: sealed"),
    (
        ["seed=1,2", "hydra/launcher=joblib", "cluster.base_port=23456"],
        "cluster.base_port=23456: jobs that run side by",
    ),
    (["seed=1,2", "hydra.launcher._target_=os.system"], "hydra.launcher={'_target_': 'os.system'}: not a plugin"),
    (["seed=1,2", "hydra/launcher=joblib", "hydra.launcher.temp_folder=/x"], "hydra.launcher.temp_folder=/x: sealed"),
    (["seed=1,2", "hydra/launcher=submitit_slurm", "hydra.launcher.setup=[id]"], "hydra.launcher.setup=['id']: sealed"),
    (
        ["seed=1,2", "hydra/launcher=submitit_slurm", "+hydra.launcher.additional_parameters.wrap=id"],
        "hydra.launcher.additional_parameters={'wrap': 'id'}: sealed",
    ),
    (
        ["seed=1,2", "hydra/launcher=submitit_slurm", "hydra.launcher.comment='a\nid'"],
        "hydra.launcher.comment=a id: not a plain value",
    ),
    (
        ["seed=1,2", "hydra/launcher=submitit_local", "hydra.launcher.submitit_folder=/x"],
        "hydra.launcher.submitit_folder=/x: sealed",
    ),
]


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert command(["-m", QWEN, *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert all(each.startswith("error: ") and "; " in each for each in err.splitlines()), err
    return err


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.mark.parametrize(("args", "line"), BAD, ids=[" ".join(args)[:60].replace("\n", " ") for args, _ in BAD])
def test_refused(args: list[str], line: str, in_an_empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert line in refused(capsys, *args)
    assert list(in_an_empty_folder.iterdir()) == []


YAML = [
    ("hydra: {sweeper: {_target_: '${name}'}}", [], "hydra.sweeper={'_target_': '${name}'"),
    (
        "hydra: {sweeper: {params: {hydra.job.chdir: 'true,false'}}}",
        [],
        "hydra.sweeper.params.hydra.job.chdir=...: not",
    ),
    ("hydra: {sweeper: {params: '${oc.create:{_target_:os.system}}'}}", [], "hydra.sweeper.params=${oc.create"),
    ("hydra: {sweeper: {params: {seed: 'range(0,3000000)'}}}", [], "makes 3000000 jobs"),
    ("hydra: {sweeper: {params: {seed: '1,x'}}}", [], "seed=x: expected int"),
    ("hydra: {job: {env_set: {LD_PRELOAD: /evil.so}}}", [], "hydra.job.env_set={'LD_PRELOAD': '/evil.so'}: sealed"),
    ("hydra: {job: {env_set: {A: b}}}", [OPTUNA], "hydra.job.env_set={'A': 'b'}: sealed"),
    ("hydra: {job: {env_set: '${oc.create:{}}'}}", [], "hydra.job.env_set=${oc.create:{}}: sealed"),
]


@pytest.mark.parametrize("swept", [False, True])
@pytest.mark.parametrize(("text", "more", "line"), YAML, ids=[text[:60] for text, _, _ in YAML])
def test_a_users_yaml_is_refused(
    text: str, more: list[str], line: str, swept: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "evil.yaml").write_text(f"# @package _global_\n{text}\n")
    (folder / "good.yaml").write_text("# @package _global_\nseed: 1\n")
    if swept and "sweeper" in text:
        pytest.skip("Hydra takes a sweeper from what is not swept only")
    experiment = "+experiment=good,evil" if swept else "+experiment=evil"
    assert command(["-m", experiment, "--config-dir", str(tmp_path / "conf"), *more]) == 2
    assert line in capsys.readouterr().err


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(-5, 5).filter(bool))
def test_a_range_is_counted_as_it_is_enumerated(start: int, stop: int, step: int) -> None:
    [override] = OverridesParser.create().parse_overrides([f"seed=range({start},{stop},{step})"])
    assert count(override) == len(list(override.sweep_string_iterator()))


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(-5, 5).filter(bool))
def test_a_range_of_quarters_too(start: int, stop: int, step: int) -> None:
    [override] = OverridesParser.create().parse_overrides([f"x=range({start / 4},{stop / 4},{step / 4})"])
    expected = count(override)
    assert expected == len(list(override.sweep_string_iterator()))
