"""Weights by a folder: what lies there, when it is whole and when it is gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from components.sglang.control import Control
from components.sglang.disk import DiskSink
from slime_launch.errors import ComponentError


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any], list[str]]]:
    """What the engine is asked, and the folder's files at that time."""
    found: list[tuple[str, dict[str, Any], list[str]]] = []

    def post(self: Control, path: str, body: dict[str, Any], doing: str) -> None:
        folder = body.get("model_path")
        found.append((path, body, sorted(file.name for file in Path(folder).iterdir()) if folder else []))

    monkeypatch.setattr(Control, "post", post)
    return found


def test_the_engine_is_told_of_a_whole_folder_only(tmp_path: Path, asked: list[Any]) -> None:
    from safetensors.torch import load_file

    tied_VH = torch.arange(6.0).reshape(2, 3)
    sink = DiskSink(url="http://e", key="k", folder=str(tmp_path / "weights" / "e-0"))
    sink.connect()
    for version in (4, 5):
        sink.begin()
        sink.send([("a", tied_VH), ("b", tied_VH), ("c", tied_VH.t())], None)
        sink.send([("d", tied_VH.to(torch.bfloat16))], version)
        assert len(list((tmp_path / "weights" / "e-0").iterdir())) == 1
        sink.end()
        path, body, files = asked[-1]
        assert (path, body["weight_version"], body["flush_cache"]) == ("/update_weights_from_disk", str(version), True)
        assert files == ["model-00001.safetensors", "model-00002.safetensors", "model.safetensors.index.json"]
        folder = Path(body["model_path"])
        assert folder.is_absolute()
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert index["weight_map"]["d"] == "model-00002.safetensors"
        assert index["metadata"]["total_size"] == 3 * 24 + 12
        first = load_file(folder / "model-00001.safetensors")
        assert torch.equal(first["c"], tied_VH.t())
        assert torch.equal(first["a"], first["b"])
    sink.close()
    assert not (tmp_path / "weights" / "e-0").exists()


def test_weights_without_begin_or_version_are_refused(tmp_path: Path, asked: list[Any]) -> None:
    sink = DiskSink(url="http://e", key="k", folder=str(tmp_path / "w"))
    sink.connect()
    with pytest.raises(ComponentError, match="outside of an update; call begin first"):
        sink.send([("a", torch.zeros(1))], 1)
    sink.begin()
    sink.send([("a", torch.zeros(1))], None)
    with pytest.raises(ComponentError, match="came without a version"):
        sink.end()
    sink.begin()
    sink.send([("a", torch.zeros(1))], 2)
    sink.end()
    assert [path for path, _, _ in asked] == ["/abort_request", "/update_weights_from_disk"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ComponentError, match="no folder for its weights"):
        DiskSink(url="http://e", key="k", folder=str(tmp_path / "file" / "w")).connect()
