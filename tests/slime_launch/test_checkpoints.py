"""Checkpoints on disk without any trainer: whole or not there, the last ones kept, only ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_launch import manifest
from slime_launch.checkpoints import Checkpoints, RunState, by_step, newest, open_checkpoint
from slime_launch.errors import ComponentError, ConfigError
from slime_launch.manifest import ForeignError, TornError
from slime_launch.resume import Start, carry_rows, choose, named


def write(run_dir: Path, step: int, keep_last: int = 2, seed: int = 7) -> Path:
    """A checkpoint with two files that stand for the trainer's."""
    checkpoints = Checkpoints(run_dir, keep_last)
    folder = checkpoints.begin(step)
    (folder / "weights").write_bytes(bytes(range(200)) * step)
    (folder / ".index").write_text("index")
    state = RunState(step=step, seed=seed, data={"given": 4 * step}, eval_before=0.25)
    return checkpoints.commit(state, manifest.measure(folder, ["weights", ".index"]))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path, 3)
    saved = open_checkpoint(folder)
    assert (saved.folder, saved.run_dir) == (folder, tmp_path)
    assert saved.state == RunState(step=3, seed=7, data={"given": 12}, eval_before=0.25)
    assert {path.name for path in folder.iterdir()} == {"weights", ".index", "state.json", "manifest.json"}
    assert folder.stat().st_mode & 0o077 == 0 and all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 12), max_size=8), st.integers(1, 3))
def test_the_last_ones_of_one_history_stay(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], keep_last: int
) -> None:
    """Steps may go back: then the history goes on from there, and what was beyond is gone."""
    folder, history = tmp_path_factory.mktemp("run"), list[int]()
    for step in steps:
        write(folder, step, keep_last)
        history = [*(done for done in history if done < step), step][-keep_last:]
        assert sorted(by_step(folder)) == history
        assert len(list((folder / "checkpoints").iterdir())) == len(history)
        found, torn = newest(folder)
        assert found is not None and found.state.step == step and not torn


def test_leftovers_of_an_ended_process_go(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 2)
    (checkpoints.begin(1) / "half").touch()
    (tmp_path / "checkpoints" / ".step_9.old").mkdir()
    assert list(checkpoints.begin(2).iterdir()) == []
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [".step_2.new"]


def drop(folder: Path) -> None:
    (folder / "weights").unlink()


def cut(folder: Path) -> None:
    (folder / "weights").write_bytes(b"short")


def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def cut_manifest(folder: Path) -> None:
    file = folder / "manifest.json"
    file.write_bytes(file.read_bytes()[:-5])


def other_state(folder: Path) -> None:
    file = folder / "state.json"
    file.write_bytes(file.read_bytes().replace(b'"step":2', b'"step":9'))


def unlisted_state(folder: Path) -> None:
    file = folder / "manifest.json"
    file.write_text(json.dumps({name: entry for name, entry in json.loads(file.read_text()).items() if name[0] == "w"}))


@pytest.mark.parametrize("spoil", [drop, cut, no_manifest, cut_manifest, other_state, unlisted_state])
def test_a_torn_one_is_passed_over_and_said(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    good, bad = write(tmp_path, 1), write(tmp_path, 2)
    spoil(bad)
    with pytest.raises(TornError, match=str(bad)):
        open_checkpoint(bad)
    found, torn = newest(tmp_path)
    assert found is not None and found.folder == good and len(torn) == 1 and str(bad) in torn[0]
    start = choose("auto", tmp_path, seed=7)
    assert start.step == 1 and "torn" in start.notes[0]
    with pytest.raises(ConfigError, match="error: resume="):
        choose(str(bad), tmp_path / "new", seed=7)


def shared_file(folder: Path) -> None:
    (folder / "weights").chmod(0o666)


def shared_folder(folder: Path) -> None:
    folder.chmod(0o777)


def linked(folder: Path) -> None:
    (folder / "weights").rename(folder.parent / "elsewhere")
    (folder / "weights").symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize("spoil", [shared_file, shared_folder, linked])
def test_what_others_may_write_is_refused_with_the_mend(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path, 1)
    spoil(write(tmp_path, 2))
    for resume in ("auto", str(tmp_path)):
        with pytest.raises(ConfigError, match="pickle, which can run code; copy it as this user"):
            choose(resume, tmp_path, seed=7)


def test_another_users_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, 1)
    monkeypatch.setattr("slime_launch.manifest.os.getuid", lambda: 4_000_000)
    with pytest.raises(ForeignError, match="belongs to user"):
        open_checkpoint(folder)


def test_an_altered_content_is_found(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    entries = manifest.read(folder)
    assert manifest.altered(folder, entries) == []
    content = bytearray((folder / "weights").read_bytes())
    content[17] ^= 1
    (folder / "weights").write_bytes(content)
    assert manifest.altered(folder, manifest.read(folder)) == ["weights"]


def test_a_folder_that_cannot_take_it_is_named(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 1)
    shutil.rmtree(checkpoints.begin(1))
    with pytest.raises(ComponentError, match=r"step_1 cannot be written"):
        checkpoints.commit(RunState(step=1, seed=0), {})


# ---- resume=


def test_a_run_folder_or_one_checkpoint(tmp_path: Path) -> None:
    one, two = write(tmp_path, 1), write(tmp_path, 2)
    assert named("resume", str(tmp_path)).folder == two
    assert named("resume", str(one)).folder == one
    assert choose(str(tmp_path), tmp_path / "new", seed=7).step == 2
    assert choose(None, tmp_path, seed=7) == Start()


def test_auto_without_any_starts_from_scratch_and_says_so(tmp_path: Path) -> None:
    start = choose("auto", tmp_path, seed=7)
    assert start.saved is None and start.step == 0
    assert "no whole checkpoint" in start.notes[0] and "from scratch" in start.notes[0]


@pytest.mark.parametrize("content", ["nothing", "no-folder", "empty"])
def test_a_path_without_any_is_refused(content: str, tmp_path: Path) -> None:
    given = tmp_path / "run"
    if content != "no-folder":
        given.mkdir()
    if content == "empty":
        (given / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match=r"error: resume=.*; name a run folder, or one of its checkpoints"):
        choose(str(given), tmp_path, seed=7)


def test_another_seed_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 1)
    with pytest.raises(ConfigError, match=r"error: seed=8: the run to go on from had seed 7; give seed=7"):
        choose("auto", tmp_path, seed=8)


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "old", 1)
    (tmp_path / "new").mkdir()
    for run in ("old", "new"):
        (tmp_path / run / "metrics.jsonl").touch()
    assert choose(str(tmp_path / "old"), tmp_path / "old", seed=7).step == 1
    for resume in (None, str(tmp_path / "old")):
        with pytest.raises(ConfigError, match=r"hydra\.run\.dir=.*holds a run already"):
            choose(resume, tmp_path / "new", seed=7)


def rows(folder: Path, steps: range, tail: str = "") -> None:
    folder.mkdir(exist_ok=True)
    for name in ("metrics.jsonl", "samples.jsonl"):
        (folder / name).write_text("".join(f'{{"step": {step}, "x": NaN}}\n' for step in steps) + tail)


def steps_of(file: Path) -> list[int]:
    return [json.loads(line)["step"] for line in file.read_text().splitlines()]


@pytest.mark.parametrize("here", [True, False])
def test_rows_end_with_the_step_that_is_gone_on_from(here: bool, tmp_path: Path) -> None:
    old = tmp_path / "old"
    rows(old, range(6), tail='{"step": 6, "to')
    write(old, 3)
    new = old if here else tmp_path / "new"
    new.mkdir(exist_ok=True)
    carry_rows(choose("auto" if here else str(old), new, seed=7), new)
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert steps_of(new / name) == [0, 1, 2, 3]
        assert (old / name).read_text().endswith("to") is not here
    assert not list(new.glob("*.part"))


def test_rows_of_an_earlier_try_are_put_aside(tmp_path: Path) -> None:
    for tries in (1, 2):
        rows(tmp_path, range(tries))
        carry_rows(Start(), tmp_path)
        assert not (tmp_path / "metrics.jsonl").exists()
        assert steps_of(tmp_path / f"metrics.jsonl.{tries}") == list(range(tries))
    carry_rows(Start(), tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
