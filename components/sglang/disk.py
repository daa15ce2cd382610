"""Weights by a folder, into engines whose ranks are replicas or pipeline stages: SGLang does not broadcast to those."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from components.sglang.control import Control
from slime_launch.errors import ComponentError

if TYPE_CHECKING:
    from torch import Tensor

_INDEX = "model.safetensors.index.json"


class DiskSink:
    """One engine as a target of weight sync (WeightSink) that reads the weights from a folder it shares with us.

    Each bucket becomes a safetensors file. The folder gets its name once all are written, so the engine, which loads
    them into all its ranks at ``end``, never sees half of an update. It is removed at the next update or at ``close``,
    and not before: pipeline stages behind the first read it only with the next request.

    url, key: the engine and its admin token. folder: where the folders of the updates lie, relative to the working
    directory of who makes the sink (a run folder, which trainer and engine must both see). timeout_s: limit of each
    wait.
    """

    def __init__(self, *, url: str, key: str, folder: str, timeout_s: float = 120.0) -> None:
        self.url = url
        self._control = Control(url, key, timeout_s)
        self._folder = Path(folder).absolute()
        self._partial: Path | None = None
        self._loaded: Path | None = None
        self._files: dict[str, str] = {}
        self._bytes = 0
        self._version: int | None = None

    def connect(self) -> None:
        """Make the folder and see that the engine takes the token.

        Raises ComponentError when the engine refuses or the folder cannot be made.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ComponentError(f"engine {self.url}: no folder for its weights: {error}") from error
        self._control.open()
        # asks for nothing: the cheapest of the endpoints that need the admin token
        self._control.post("/abort_request", {"rid": ""}, "opening weight sync by disk")

    def begin(self) -> None:
        """Start an empty folder."""
        self._discard()
        self._partial = self._folder / f"partial-{secrets.token_hex(4)}"
        self._partial.mkdir()

    def send(self, bucket: Sequence[tuple[str, Tensor]], version: int | None) -> None:
        """Write (HF name, full tensor) pairs into a file of their own.

        Raises ComponentError outside of an update, and when a file cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        if self._partial is None:
            raise ComponentError(f"engine {self.url}: weights were sent outside of an update; call begin first")
        file = f"model-{len(set(self._files.values())) + 1:05d}.safetensors"
        # copies: a file holds no two tensors that share memory, as tied ones do
        tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in bucket}
        try:
            save_file(tensors, self._partial / file, metadata={"format": "pt"})
        except (OSError, SafetensorError) as error:
            raise ComponentError(f"engine {self.url}: weights could not be written: {error}") from error
        self._files |= dict.fromkeys(tensors, file)
        self._bytes += sum(tensor.nbytes for tensor in tensors.values())
        self._version = version

    def end(self) -> None:
        """Have every rank load the folder, forget all cached prefixes and serve it under its version.

        Raises ComponentError when the engine refuses or no bucket carried a version, DeadlineError when it is late.
        """
        if self._partial is None or self._version is None:
            raise ComponentError(f"engine {self.url}: the last weights of an update came without a version")
        index = {"metadata": {"total_size": self._bytes}, "weight_map": self._files}
        (self._partial / _INDEX).write_text(json.dumps(index, indent=2))
        whole = self._partial.rename(self._partial.with_name(f"{self._version}-{secrets.token_hex(4)}"))
        self._partial, self._loaded = None, whole
        body = {"model_path": str(whole), "weight_version": str(self._version), "flush_cache": True}
        self._control.post("/update_weights_from_disk", body | {"load_format": "safetensors"}, "loading weights")

    def close(self) -> None:
        """Remove what is left of the folders. Safe to call twice."""
        self._discard()
        if self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()
        self._control.close()

    def _discard(self) -> None:
        for folder in (self._partial, self._loaded):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
        self._partial = self._loaded = self._version = None
        self._files, self._bytes = {}, 0
