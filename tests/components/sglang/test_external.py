"""Engines that someone else started: who they are is asked, and every difference told at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components.sglang import identity
from components.sglang.external import ExternalServer
from slime_launch.errors import ComponentError, DeadlineError
from slime_launch.types import Endpoint
from tests.components.sglang.conftest import Engine, Split
from tests.components.sglang.test_engine import gap, reference
from tests.servers import free_port, sampled

pytestmark = pytest.mark.servers
KEY = "rollout.topology.groups.theirs"


def key_file(folder: Path, name: str, key: str, mode: int = 0o600) -> str:
    file = folder / name
    file.write_text(key + "\n")
    file.chmod(mode)
    return str(file)


def external(engine: Engine, folder: Path, **change: Any) -> ExternalServer:
    """Our picture of an engine that was started by ``tests.servers``, true but for ``change``."""
    args: dict[str, Any] = {
        "name": "theirs-0", "group": "theirs", "kind": "regular", "model": "actor", "url": engine.endpoint.url,
        "key_file": key_file(folder, "user", engine.server.site.keys.user),
        "admin_key_file": key_file(folder, "admin", engine.server.site.keys.admin),
        "model_path": str(engine.checkpoint),
        "expected": {"tp_size": 1, "pp_size": 1, "dp_size": 1, "dtype": "float32"},
        "weight_sync": {
            "via": "broadcast", "host": "127.0.0.1", "port": free_port(), "backend": "gloo", "group": "theirs",
            "timeout_s": 60.0,
        },
        "timeout_s": 60.0,
    }  # fmt: skip
    return ExternalServer(**args | change)


def test_it_serves_and_takes_weights_like_ours_and_goes_on_afterwards(
    text: Engine, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file

    server = external(text, tmp_path)
    given = server.start({})
    assert given["engine_url"] == replace(text.endpoint, log="")  # the log is its owner's
    weights = load_file(text.checkpoint / "model.safetensors")
    sink = given["weight_sink"]
    sink.connect()
    for version, factor in ((1, 0.5), (2, 1.0)):
        sink.begin()
        sink.send([(name, tensor * factor) for name, tensor in weights.items()], version)
        sink.end()
    sink.close()
    assert server.renew() == given
    assert server.failure() is None
    server.stop()
    server.stop()
    ids, logprobs, meta = sampled(given["engine_url"], input_ids=[20, 21, 22])
    assert meta["weight_version"] == "2"
    assert gap(logprobs, reference(text.checkpoint, [20, 21, 22], ids)) < 1e-4
    said = "".join(capfd.readouterr())
    assert "SGLang 0.5.23, ['Qwen3ForCausalLM'], dtype float32, tp_size 1" in said
    assert not any(key in said for key in text.server.site.keys.secrets)


def test_all_differences_are_told_at_once_with_key_values_and_mend(text: Engine, tmp_path: Path, glm: Path) -> None:
    expected = {"tp_size": 2, "pp_size": 1, "dp_size": 4, "dtype": "bfloat16", "no_such": 1}
    wrong_admin = key_file(tmp_path, "wrong", "wrong")
    args = {"expected": expected, "kind": "decode", "model_path": str(glm), "admin_key_file": wrong_admin}
    with pytest.raises(ComponentError) as caught:
        external(text, tmp_path, **args).start({})
    lines = str(caught.value).splitlines()
    for line in (
        f"error: {KEY}.worker_type=decode: it is a regular engine; set worker_type to regular",
        f"error: {KEY}.tp=2: it runs with tp_size=1; set tp to what it runs with",
        f"error: {KEY}.dp=4: it runs with dp_size=1; ",
        f"error: {KEY}.overrides.dtype=bfloat16: it runs with dtype=float32; ",
        f"error: {KEY}.overrides.no_such=1: it does not tell its no_such; ",
        f"error: {KEY}.path={glm}: it serves {text.checkpoint}, whose architectures are ['Qwen3ForCausalLM'], not",
        f"error: {KEY}.admin_key_file=***: it does not open the engine's control endpoints",
    ):
        assert sum(said.startswith(line) for said in lines) == 1, (line, lines)
    assert len(lines) == 8
    assert not any(key in str(caught.value) for key in text.server.site.keys.secrets)


def with_config(checkpoint: Path, folder: Path, **change: Any) -> str:
    import json

    config = json.loads((checkpoint / "config.json").read_text())
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | change))
    return str(folder)


def test_the_model_is_compared_by_its_shape_wherever_it_lies(text: Engine, tmp_path: Path) -> None:
    external(text, tmp_path, model_path=with_config(text.checkpoint, tmp_path / "same")).start({})
    other = with_config(text.checkpoint, tmp_path / "other", hidden_size=256, vocab_size=113)
    with pytest.raises(ComponentError, match=r"(?s)with vocab_size=112, not 113; .*with hidden_size=128, not 256; "):
        external(text, tmp_path, model_path=other).start({})


def test_the_vocabulary_is_asked_for_where_its_folder_cannot_be_seen(
    text: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = identity.Asked.of.__func__  # type: ignore[attr-defined]

    def elsewhere(cls: Any, *args: Any) -> identity.Asked:
        asked = of(cls, *args)
        asked.info["model_path"] = "/on/another/machine"
        return asked  # type: ignore[no-any-return]

    monkeypatch.setattr(identity.Asked, "of", classmethod(elsewhere))
    external(text, tmp_path).start({})
    other = with_config(text.checkpoint, tmp_path / "other", vocab_size=113)
    with pytest.raises(ComponentError, match="it serves /on/another/machine with vocab_size=112, not 113"):
        external(text, tmp_path, model_path=other).start({})


def test_another_version_is_refused_by_name(text: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "SGLANG_VERSION", "0.6.0")
    with pytest.raises(ComponentError, match=r"it runs SGLang 0\.5\.23, and this launcher is written for 0\.6\.0"):
        external(text, tmp_path).start({})


def test_keys_are_read_from_files_that_hold_nothing_else(
    text: Engine, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for file, reason in (
        (str(tmp_path / "none"), "cannot be read"),
        (key_file(tmp_path, "empty", ""), "is not one token"),
        (key_file(tmp_path, "two", "a b"), "is not one token"),
    ):
        with pytest.raises(ComponentError, match=rf"{KEY}\.key_file={file}: {reason}"):
            external(text, tmp_path, key_file=file).start({})
    with pytest.raises(ComponentError, match="/server_info says 401; its token belongs into key_file"):
        external(text, tmp_path, key_file=None).start({})
    open_file = key_file(tmp_path, "open", text.server.site.keys.user, 0o644)
    external(text, tmp_path, key_file=open_file).start({})
    assert f"{KEY}.key_file={open_file}: others may read it (mode 0644)" in capfd.readouterr().out


def test_an_encoder_is_asked_for_its_health_alone(
    text: Engine, split: Split, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    encoder = {"kind": "encoder", "url": split.encoder_url.url, "model": "omni", "weight_sync": None, "key_file": None}
    given = external(text, tmp_path, **encoder).start({})
    assert given == {"encoder_url": Endpoint(split.encoder_url.url, "", "omni")}
    assert "nothing but its health was asked" in capfd.readouterr().out


def test_one_that_is_not_there_is_named(text: Engine, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    server = external(text, tmp_path, url=url, timeout_s=1.0)
    with pytest.raises(DeadlineError, match=f"theirs-0 \\(regular, {url}\\) is not healthy after 1 s"):
        server.start({})
    assert [server.failure() is None for _ in range(3)] == [True, True, False]
