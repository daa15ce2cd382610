"""Training state on disk: exact to the bit after a resume, in other layouts, and never read when it is not ours."""

from __future__ import annotations

import gc
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from components.megatron.trainer import MegatronTrainer
from slime_launch.checkpoints import newest
from slime_launch.errors import ComponentError
from slime_launch.interfaces import Trainer
from tests.components.megatron.actions import finished, recorded, run
from tests.components.megatron.helpers import OPTIM, ROOT, trainer_settings, write_random

# Odd: a padded vocabulary, tied weights, some weights of one layer frozen.
SHAPES = {
    "qwen3": {"num_hidden_layers": 4, "vocab_size": 113, "tie_word_embeddings": True},
    "glm_omni": {"vocab_size": 113},
}
FREEZE = {"qwen3": [r"layers\.1\.mlp\."], "glm_omni": [r"^encoders\."]}
FAMILIES = sorted(file.parent.parent.name for file in (ROOT / "components" / "models").glob("*/configs/tiny.json"))
SCHEDULE = OPTIM | {"schedule": "cosine", "warmup_steps": 3, "weight_decay": 0.1}
LAYOUTS = {
    "tp2": {"tp": 2},
    "pp2vpp2": {"pp": 2, "vpp": 2},
    "dp2": {},
    "cp2": {"cp": 2},
    "ep2": {"ep": 2},
    "tp2sp": {"tp": 2, "sp": True},
}
WORLDS = [
    *(("qwen3", layout) for layout in ("tp2", "pp2vpp2", "dp2")),
    ("qwen3_moe", "tp2"),
    *(
        pytest.param(each, marks=pytest.mark.full)
        for each in (("qwen3", "cp2"), ("qwen3", "tp2sp"), ("qwen3_moe", "tp2sp"), ("qwen3_moe", "ep2"))
    ),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("states")
    for family in FAMILIES:
        write_random(folder / family, family, **SHAPES.get(family, {}))
    return folder


def settings(root: Path, family: str, **overrides: Any) -> dict[str, Any]:
    defaults = {"freeze": FREEZE.get(family, []), "num_steps": 8, "num_minibatches": 2, "optim": SCHEDULE}
    return trainer_settings(root / family, family, **defaults | overrides)


def same(one: Path, other: Path) -> bool:
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_trainer_is_one() -> None:
    assert isinstance(MegatronTrainer(**trainer_settings(Path("/nowhere"), "qwen3")), Trainer)


@pytest.mark.parametrize("family", FAMILIES)
def test_half_resume_half_is_the_straight_run_to_the_bit(family: str, root: Path, tmp_path: Path) -> None:
    step_2 = str(tmp_path / "checkpoints" / "step_2")
    save = [["save", str(tmp_path), 2], ["train", 3], ["finish", str(tmp_path), 2], ["train", 4]]
    straight = [["train", 1], ["train", 2], *save, ["hf", str(tmp_path / "straight")]]
    first = run({"settings": settings(root, family), "script": straight}, 0)
    torch.rand(3)  # the generators must not be needed where they are
    resumed = [["load", step_2], ["train", 3], ["train", 4], ["hf", str(tmp_path / "resumed")]]
    second = run({"settings": settings(root, family), "script": resumed}, 0)
    assert second[0] == {"updates": 4, "rng": True}
    assert same(tmp_path / "straight", tmp_path / "resumed")
    assert not same(tmp_path / "straight", root / family)
    for straight_step, resumed_step in zip((first[3], first[5]), second[1:3], strict=True):
        for name in ("train/loss", "train/grad_norm", "train/lr-pg_0", "train/entropy"):
            assert straight_step[name] == resumed_step[name]


World = tuple[str, str, Path, list[Any]]


@pytest.fixture(scope="module", params=WORLDS, ids="-".join)
def world(request: pytest.FixtureRequest, root: Path) -> World:
    """Two ranks train four steps and save in the middle; (family, layout, run folder, answers)."""
    family, layout = request.param
    folder = root / f"{family}-{layout}"
    folder.mkdir()
    script = [["train", 1], ["train", 2], ["hf", str(folder / "two")], ["save", str(folder), 2], ["train", 3],
              ["finish", str(folder), 2], ["train", 4], ["hf", str(folder / "straight")]]  # fmt: skip
    job = {"settings": settings(root, family, world_size=2, **LAYOUTS[layout]), "script": script}
    return family, layout, folder, finished(folder / "straight.json", job)


def test_two_ranks_resume_to_the_bit(world: World, root: Path) -> None:
    family, layout, folder, _ = world
    script = [["load", str(folder / "checkpoints" / "step_2")], ["train", 3], ["train", 4],
              ["hf", str(folder / "resumed")]]  # fmt: skip
    job = {"settings": settings(root, family, world_size=2, **LAYOUTS[layout]), "script": script}
    answers = finished(folder / "resumed.json", job)
    assert answers[0] == {"updates": 4, "rng": True}
    assert same(folder / "straight", folder / "resumed")


def test_one_rank_goes_on_where_two_were(world: World, root: Path, tmp_path: Path) -> None:
    family, _, folder, straight = world
    script = [["load", str(folder / "checkpoints" / "step_2")], ["hf", str(tmp_path / "two")], ["train", 3],
              ["train", 4], ["hf", str(tmp_path / "four")]]  # fmt: skip
    answers = run({"settings": settings(root, family), "script": script}, 0)
    assert answers[0] == {"updates": 4, "rng": False}
    assert same(folder / "two", tmp_path / "two")
    assert answers[2]["train/loss"] == pytest.approx(straight[4]["train/loss"], abs=1e-5)
    assert answers[3]["train/lr-pg_0"] == straight[6]["train/lr-pg_0"]
    before, mine, theirs = (
        load_file(path / "model.safetensors") for path in (folder / "two", tmp_path / "four", folder / "straight")
    )
    moved, apart = (
        torch.cat([(mine[name] - other[name]).flatten() for name in mine]).norm() for other in (before, theirs)
    )
    assert apart < 2e-2 * moved  # without Adam's moments it is of the size of the move


def test_two_ranks_go_on_where_one_was(root: Path, tmp_path: Path) -> None:
    start = [["train", 1], ["hf", str(tmp_path / "one")], ["save", str(tmp_path), 1], ["finish", str(tmp_path), 1]]
    run({"settings": settings(root, "qwen3"), "script": start}, 0)
    script = [["load", str(tmp_path / "checkpoints" / "step_1")], ["hf", str(tmp_path / "two")], ["train", 2]]
    answers = finished(
        tmp_path / "job.json", {"settings": settings(root, "qwen3", world_size=2, tp=2), "script": script}
    )
    assert answers[0] == {"updates": 2, "rng": False}
    assert same(tmp_path / "one", tmp_path / "two")


FOUR = {"pp": 2, "ep": 2, "world_size": 4}
"""GLM's first stage has no experts here."""


@pytest.mark.full
@pytest.mark.parametrize(
    ("family", "before", "after"),
    [
        ("qwen3_moe", {}, {"ep": 2}),
        ("qwen3_moe", {"ep": 2}, {"tp": 2, "sp": True}),
        ("glm4_moe", FOUR, FOUR),
        ("glm4_moe", FOUR, {"ep": 2}),
        ("glm4_moe", {"pp": 2}, FOUR),
    ],
)
def test_experts_move_between_layouts(
    family: str, before: dict[str, Any], after: dict[str, Any], root: Path, tmp_path: Path
) -> None:
    two, one = (settings(root, family, **{"world_size": 2} | sizes) for sizes in (before, after))
    script = [["train", 1], ["hf", str(tmp_path / "before")], ["save", str(tmp_path), 1], ["finish", str(tmp_path), 1],
              ["train", 2], ["train", 3], ["hf", str(tmp_path / "straight")]]  # fmt: skip
    finished(tmp_path / "straight.json", {"settings": two, "script": script})
    script = [["load", str(tmp_path / "checkpoints" / "step_1")], ["hf", str(tmp_path / "after")], ["train", 2],
              ["train", 3], ["hf", str(tmp_path / "resumed")]]  # fmt: skip
    answers = finished(tmp_path / "resumed.json", {"settings": one, "script": script})
    assert answers[0]["updates"] == 2
    assert same(tmp_path / "before", tmp_path / "after")
    start, straight, resumed = (
        load_file(tmp_path / name / "model.safetensors") for name in ("before", "straight", "resumed")
    )
    moved, apart = (
        torch.cat([(resumed[name] - other[name]).flatten() for name in resumed]).norm() for other in (start, straight)
    )
    assert apart < 2e-2 * moved


def test_a_checkpoint_whose_first_rank_trained_nothing_is_gone_on_from(root: Path, tmp_path: Path) -> None:
    last = {"freeze": [], "train_only": [r"layers\.3\."]}
    script = [["train", 1], ["save", str(tmp_path), 1], ["finish", str(tmp_path), 1], ["train", 2]]
    job = {"settings": settings(root, "qwen3", world_size=2, pp=2, **last), "script": script}
    straight = finished(tmp_path / "job.json", job)
    script = [["load", str(tmp_path / "checkpoints" / "step_1")], ["train", 2]]
    resumed = run({"settings": settings(root, "qwen3", **last), "script": script}, 0)
    assert resumed[1]["train/loss"] == pytest.approx(straight[3]["train/loss"], abs=1e-5)


def test_weights_alone_start_a_new_run(root: Path, tmp_path: Path) -> None:
    step_2 = saved(root, tmp_path)
    job = {"settings": settings(root, "qwen3", freeze=[])}
    script = [["weights", str(step_2)], ["hf", str(tmp_path / "loaded")], ["train", 1]]
    answers = run(job | {"script": script}, 0)
    assert answers[0] == {"updates": 0, "rng": False}
    assert same(tmp_path / "trained", tmp_path / "loaded")
    assert answers[2]["train/lr-pg_0"] == pytest.approx(SCHEDULE["lr"] * 2 / 3)


def test_settings_of_the_optimizer_are_the_new_runs(root: Path, tmp_path: Path) -> None:
    optim = OPTIM | {"lr": 1e-30, "beta1": 0.5}
    job = {"settings": settings(root, "qwen3", optim=optim)}
    step_2 = saved(root, tmp_path)
    script = [["load", str(step_2)], ["train", 3], ["hf", str(tmp_path / "still")]]
    assert run(job | {"script": script}, 0)[1]["train/lr-pg_0"] == 1e-30
    assert same(tmp_path / "trained", tmp_path / "still")


def saved(root: Path, folder: Path, **overrides: Any) -> Path:
    """The checkpoint of a short run; its weights are in ``trained`` beside."""
    script = [["train", 1], ["train", 2], ["hf", str(folder / "trained")], ["save", str(folder), 2],
              ["finish", str(folder), 2]]  # fmt: skip
    run({"settings": settings(root, "qwen3", **overrides), "script": script}, 0)
    return folder / "checkpoints" / "step_2"


class Started:
    """A trainer that has started, for a ``with`` block."""

    def __init__(self, **given: Any) -> None:
        self.trainer = MegatronTrainer(**given)

    def __enter__(self) -> MegatronTrainer:
        self.trainer.start({})
        return self.trainer

    def __exit__(self, *_: object) -> None:
        self.trainer.stop()


def test_what_is_saved_is_the_state_at_the_call(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training that goes on while the files are written changes nothing in them."""
    from components.megatron import dist_checkpoint

    may_write, write = threading.Event(), dist_checkpoint._write
    monkeypatch.setattr(dist_checkpoint, "_write", lambda *args: may_write.wait(30) and write(*args))
    with Started(**settings(root, "qwen3")) as trainer:
        trainer.train(1, recorded("qwen3", 1))
        trainer.save_hf(str(tmp_path / "at-the-call"))
        (tmp_path / "files").mkdir()
        trainer.save(str(tmp_path / "files"))
        assert trainer.finish_save(wait=False) is None
        with pytest.raises(ComponentError, match="under way"):
            trainer.save(str(tmp_path / "more"))
        trainer.train(2, recorded("qwen3", 2))
        may_write.set()
        files = trainer.finish_save(wait=True)
    assert files and set(files) == {file.name for file in (tmp_path / "files").iterdir()}
    commit(tmp_path, files)
    script = [["load", str(tmp_path / "checkpoints" / "step_1")], ["hf", str(tmp_path / "loaded")]]
    run({"settings": settings(root, "qwen3"), "script": script}, 0)
    assert same(tmp_path / "at-the-call", tmp_path / "loaded")


def commit(folder: Path, files: Any) -> None:
    from slime_launch.checkpoints import Checkpoints, RunState

    checkpoints = Checkpoints(folder, 1)
    checkpoints.begin(1).rmdir()
    (folder / "files").rename(folder / "checkpoints" / ".step_1.new")
    checkpoints.commit(RunState(step=1, seed=0), files)


def tensor_bytes() -> int:
    gc.collect()
    storages = {
        item.untyped_storage().data_ptr(): item.untyped_storage().nbytes()
        for item in gc.get_objects()
        if isinstance(item, torch.Tensor)
    }
    return sum(storages.values())


def test_nothing_is_kept_between_saves(root: Path, tmp_path: Path) -> None:
    with Started(**settings(root, "qwen3")) as trainer:
        trainer.train(1, recorded("qwen3", 1))
        threads, before = threading.active_count(), tensor_bytes()
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            trainer.save(str(tmp_path / name))
            assert trainer.finish_save(wait=True)
            assert (threading.active_count(), tensor_bytes()) == (threads, before)


def test_a_full_disk_is_an_error_that_names_the_folder(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from components.megatron import dist_checkpoint

    def no_room(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dist_checkpoint.filesystem_async, "_write_item", no_room)
    with Started(**settings(root, "qwen3")) as trainer:
        trainer.save(str(tmp_path))
        with pytest.raises(ComponentError, match=f"{tmp_path}.*No space left"):
            trainer.finish_save(wait=True)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return Path.touch, (self.file,)  # type: ignore[return-value]


def test_an_altered_file_is_not_unpickled(root: Path, tmp_path: Path) -> None:
    step_2, mark = saved(root, tmp_path), tmp_path / "run"
    index = step_2 / ".metadata"
    index.write_bytes(pickle.dumps(Bomb(mark)).ljust(index.stat().st_size, b"\0"))
    assert newest(tmp_path)[0] is not None  # its size is right: only its content tells
    with (
        Started(**settings(root, "qwen3")) as trainer,
        pytest.raises(ComponentError, match=r"\.metadata changed since it was written; remove it"),
    ):
        trainer.load(str(step_2))
    assert not mark.exists()
    pickle.loads(index.read_bytes())
    assert mark.exists()


@pytest.mark.parametrize("change", ["torn", "shared", "foreign"])
def test_a_folder_that_is_not_whole_or_not_ours_is_not_read(
    change: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_2 = saved(root, tmp_path)
    if change == "torn":
        (step_2 / "__0_0.distcp").unlink()
    elif change == "shared":
        step_2.chmod(0o770)
    else:
        monkeypatch.setattr("slime_launch.manifest.os.getuid", lambda: 4_000_000)
    says = {"torn": "distcp is missing", "shared": "may be written by others", "foreign": "belongs to user"}[change]
    with Started(**settings(root, "qwen3")) as trainer:
        with pytest.raises(ComponentError, match=says):
            trainer.load(str(step_2))
        trainer.save_hf(str(tmp_path / "untouched"))
    assert same(tmp_path / "untouched", root / "qwen3")


@pytest.mark.parametrize("family", ["qwen3", "llama3"])
def test_a_critic_takes_an_actors_weights_and_draws_its_head(family: str, root: Path, tmp_path: Path) -> None:
    """Of tied embeddings, and of an output layer that the actor's checkpoint has under the head's name."""
    step_1, own = tmp_path / "checkpoints" / "step_1", tmp_path / "own"
    script = [["train", 1], ["hf", str(tmp_path / "trained")], ["save", str(tmp_path), 1], ["finish", str(tmp_path), 1]]
    run({"settings": settings(root, family), "script": script}, 0)
    heads = []
    for seed in (7, 8):
        with Started(**settings(root, family, role="critic", seed=seed)) as critic:
            head = critic._ready().weights.tensors["output_layer.weight"]
            if seed == 7:
                drawn = head.detach().clone()
                head.data.zero_()
                with pytest.raises(ComponentError, match="a critic takes the weights alone"):
                    critic.load(str(step_1))
                critic.load(str(step_1), weights_only=True)
                assert torch.equal(head, drawn) and float(drawn.abs().max()) > 0
                critic.save_hf(str(tmp_path / "loaded"))
                own.mkdir()
                critic.save(str(own))
                files = critic.finish_save(wait=True)
            else:
                critic.load(str(committed(own, files)))
            heads.append(head.detach().clone())
    assert torch.equal(*heads)
    before, after, start = (
        load_file(path / "model.safetensors") for path in (tmp_path / "trained", tmp_path / "loaded", root / family)
    )
    differ = {name for name in before if not torch.equal(before[name], after[name])}
    assert differ <= {"lm_head.weight"} and all(torch.equal(after[name], start[name]) for name in differ)


def committed(folder: Path, files: Any) -> Path:
    """A checkpoint of files that a trainer wrote there."""
    from slime_launch import manifest

    manifest.write(folder, files)
    return folder


@pytest.mark.parametrize("overrides", [{"freeze": []}, {"freeze": [r"layers\.0\."]}])
def test_another_choice_of_frozen_weights_does_not_fit(overrides: dict[str, Any], root: Path, tmp_path: Path) -> None:
    step_2 = saved(root, tmp_path)
    with (
        Started(**settings(root, "qwen3", **overrides)) as trainer,
        pytest.raises(ComponentError, match=r"does not fit this model.*model\.freeze"),
    ):
        trainer.load(str(step_2))


def test_a_model_of_another_shape_does_not_fit(root: Path, tmp_path: Path) -> None:
    step_2 = saved(root, tmp_path)
    write_random(tmp_path / "deeper", "qwen3", **SHAPES["qwen3"] | {"num_hidden_layers": 5})
    with (
        Started(**trainer_settings(tmp_path / "deeper", "qwen3", freeze=FREEZE["qwen3"])) as trainer,
        pytest.raises(ComponentError, match=r"does not fit this model.*lacks decoder\.layers\.4\."),
    ):
        trainer.load(str(step_2))
