"""One rank: weights in from a checkpoint, out to a folder and to the engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from components.megatron.checkpoint import new_folder
from components.megatron.trainer import MegatronTrainer
from slime_launch.errors import ComponentError
from slime_launch.interfaces import WeightSink
from tests.components.megatron.helpers import (
    hf_model,
    random_samples,
    trainer_settings,
    with_reference_logprobs,
)

Start = Callable[..., MegatronTrainer]


class MemorySink:
    """Keeps what it is sent, and checks that it is sent in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.weights: dict[str, torch.Tensor] = {}
        self.versions: list[int | None] = []
        self.sizes: list[int] = []

    def connect(self) -> None:
        self.calls.append("connect")

    def begin(self) -> None:
        self.calls.append("begin")

    def send(self, bucket: Sequence[tuple[str, torch.Tensor]], version: int | None) -> None:
        self.calls.append("send")
        self.versions.append(version)
        self.sizes.append(sum(tensor.nbytes for _, tensor in bucket))
        self.weights |= {name: tensor.clone() for name, tensor in bucket}

    def end(self) -> None:
        self.calls.append("end")

    def close(self) -> None:
        self.calls.append("close")


@pytest.mark.parametrize("name", ["qwen3-odd", "glm_omni-odd"])
def test_save_gives_the_checkpoint_back_bit_for_bit(
    name: str, folders: dict[str, Path], start: Start, tmp_path: Path
) -> None:
    start(name).save_hf(str(tmp_path / "saved"))
    before, after = (load_file(folder / "model.safetensors") for folder in (folders[name], tmp_path / "saved"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert (tmp_path / "saved" / "config.json").read_text() == (folders[name] / "config.json").read_text()


@pytest.mark.parametrize("name", ["qwen3-odd", "glm_omni"])
def test_a_saved_checkpoint_loads_in_transformers_as_trained(name: str, start: Start, tmp_path: Path) -> None:
    family = name.partition("-")[0]
    trainer = start(name)
    trainer.train(0, random_samples(family))
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "stale").touch()
    trainer.save_hf(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / "stale").exists() and len(list(tmp_path.iterdir())) == 1
    model = hf_model(tmp_path / "saved", family)
    samples = with_reference_logprobs(model, random_samples(family, seed=5), temperature=1.0)
    assert trainer.train(1, samples)["train/train_rollout_logprob_abs_diff/max"] < 1e-4


def test_sync_sends_the_decoder_in_buckets_and_the_version_last(folders: dict[str, Path], start: Start) -> None:
    sink = MemorySink()
    assert isinstance(sink, WeightSink)
    trainer = start("glm_omni", {"weight_sink": [sink]}, bucket_mb=0.25)
    metrics = trainer.sync(7)
    assert sink.calls == ["connect", "begin", *["send"] * len(sink.versions), "end"]
    assert sink.versions[-1] == 7 and set(sink.versions[:-1]) == {None}
    assert len(sink.sizes) > 2 and max(sink.sizes) <= 0.25 * 2**20
    stored = load_file(folders["glm_omni"] / "model.safetensors")
    assert sink.weights.keys() == {name for name in stored if not name.startswith("model.visual.")}
    assert all(torch.equal(tensor, stored[name]) for name, tensor in sink.weights.items())
    assert metrics["perf/update_weights_time"] > 0 and metrics["perf/update_weights_mb_per_s"] > 0
    trainer.stop()
    assert sink.calls[-1] == "close"


def test_the_tower_and_frozen_parameters_stay(folders: dict[str, Path], start: Start, tmp_path: Path) -> None:
    trainer = start("glm_omni", freeze=[r"^encoders\.vision\.", r"layers\.1\.mlp\."])
    trainer.train(0, random_samples("glm_omni"))
    trainer.save_hf(str(tmp_path / "saved"))
    before, after = (load_file(folder / "model.safetensors") for folder in (folders["glm_omni"], tmp_path / "saved"))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith("model.visual.") or ".layers.1.mlp." in name}


def test_missing_and_extra_names_are_listed_at_once(folders: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(folders["qwen3"] / "model.safetensors")
    tensors["model.extra.weight"] = tensors.pop("model.layers.1.self_attn.q_norm.weight")
    tensors["model.more.weight"] = tensors.pop("model.norm.weight")
    trainer = MegatronTrainer(**trainer_settings(changed(folders["qwen3"], tmp_path / "in", tensors), "qwen3"))
    with pytest.raises(ComponentError) as caught:
        trainer.start({})
    trainer.stop()
    for name in ("model.extra.weight", "model.more.weight", "layers.1.self_attn.q_norm.weight", "model.norm.weight"):
        assert name in str(caught.value)


def changed(folder: Path, target: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """A checkpoint of the same config.json with other tensors."""
    target.mkdir()
    (target / "config.json").write_text((folder / "config.json").read_text())
    save_file(tensors, target / "model.safetensors")
    return target


def test_a_second_name_of_tied_weights_is_kept(folders: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(folders["qwen3-odd"] / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    given = changed(folders["qwen3-odd"], tmp_path / "in", tensors)
    trainer = MegatronTrainer(**trainer_settings(given, "qwen3"))
    trainer.start({})
    trainer.save_hf(str(tmp_path / "out"))
    trainer.stop()
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert saved.keys() == tensors.keys() and all(torch.equal(saved[name], tensors[name]) for name in tensors)


def test_tied_weights_that_differ_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(folders["qwen3-odd"] / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    trainer = MegatronTrainer(**trainer_settings(changed(folders["qwen3-odd"], tmp_path / "in", tensors), "qwen3"))
    with pytest.raises(ComponentError, match=r"ties lm_head\.weight to .*, and the two differ"):
        trainer.start({})
    trainer.stop()


def test_stored_rotary_frequencies_are_not_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(folders["qwen3"] / "model.safetensors")
    stored = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(16) for layer in range(2)}
    trainer = MegatronTrainer(**trainer_settings(changed(folders["qwen3"], tmp_path / "in", tensors | stored), "qwen3"))
    trainer.start({})
    trainer.save_hf(str(tmp_path / "out"))
    trainer.stop()
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == tensors.keys()


@pytest.mark.parametrize("renames", [0, 1])
def test_an_export_that_is_interrupted_leaves_one_whole_folder(
    renames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two renames, and with what an earlier one left behind."""
    target, rename, done = tmp_path / "hf", Path.rename, []
    target.mkdir()
    (target / "old").touch()
    (tmp_path / ".hf.new").mkdir()
    (tmp_path / ".hf.new" / "torn").touch()

    def interrupted(self: Path, other: Path) -> Path:
        if len(done) == renames:
            done.append(other)
            raise KeyboardInterrupt
        done.append(other)
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), new_folder(target) as fresh:
        (fresh / "new").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["hf"] and [path.name for path in target.iterdir()] == ["old"]
    with new_folder(target) as fresh:
        (fresh / "new").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["hf"] and [path.name for path in target.iterdir()] == ["new"]


def test_a_killed_export_is_taken_back(tmp_path: Path) -> None:
    (tmp_path / ".hf.old").mkdir()
    (tmp_path / ".hf.old" / "before").touch()
    with pytest.raises(RuntimeError), new_folder(tmp_path / "hf"):
        assert (tmp_path / "hf" / "before").exists()
        raise RuntimeError
    assert (tmp_path / "hf" / "before").exists()
