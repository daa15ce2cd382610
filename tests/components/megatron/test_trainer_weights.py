"""One rank: weights in from a checkpoint, out to a folder and to the engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

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
    (tmp_path / "config.json").write_text((folders["qwen3"] / "config.json").read_text())
    save_file(tensors, tmp_path / "model.safetensors")
    trainer = MegatronTrainer(**trainer_settings(tmp_path, "qwen3"))
    with pytest.raises(ComponentError) as caught:
        trainer.start({})
    trainer.stop()
    for name in ("model.extra.weight", "model.more.weight", "layers.1.self_attn.q_norm.weight", "model.norm.weight"):
        assert name in str(caught.value)


def test_a_second_name_of_tied_weights_is_kept(folders: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(folders["qwen3-odd"] / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "config.json").write_text((folders["qwen3-odd"] / "config.json").read_text())
    save_file(tensors, tmp_path / "in" / "model.safetensors")
    trainer = MegatronTrainer(**trainer_settings(tmp_path / "in", "qwen3"))
    trainer.start({})
    trainer.save_hf(str(tmp_path / "out"))
    trainer.stop()
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert saved.keys() == tensors.keys() and all(torch.equal(saved[name], tensors[name]) for name in tensors)
