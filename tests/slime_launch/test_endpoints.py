"""endpoints.json: for its owner's eyes, and only while the run goes on."""

import json
import stat
from pathlib import Path

import pytest

from slime_launch.endpoints import addresses, published
from slime_launch.types import Endpoint


def test_published_while_the_run_goes_on(tmp_path):
    routers = [Endpoint("http://127.0.0.1:1", "secret-a", "actor"), Endpoint("http://127.0.0.1:2", "secret-b", "judge")]
    with pytest.raises(KeyboardInterrupt), published(tmp_path, addresses(routers, [])):
        told = json.loads((tmp_path / "endpoints.json").read_text())
        assert {name: (one["base_url"], one["model"]) for name, one in told.items()} == {
            "actor": ("http://127.0.0.1:1/v1", "actor"),
            "judge": ("http://127.0.0.1:2/v1", "judge"),
        }
        keys = {name: Path(one["key_file"]) for name, one in told.items()}
        assert {name: key.read_text() for name, key in keys.items()} == {"actor": "secret-a", "judge": "secret-b"}
        files = [tmp_path / "endpoints.json", *keys.values()]
        assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
        assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
        assert "secret" not in (tmp_path / "endpoints.json").read_text()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_keys_of_others_stay(tmp_path):
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "actor").write_text("shared")
    with published(tmp_path, {"actor": Endpoint("http://127.0.0.1:1", "secret", "actor")}):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["keys", "actor"]


def test_a_model_without_a_router_is_asked_at_its_engines():
    router, first, second, behind = (
        Endpoint(f"http://127.0.0.1:{port}", "", model)
        for port, model in ((1, "judge"), (2, "actor"), (3, "actor"), (4, "judge"))
    )
    assert addresses([router], [first, second, behind]) == {"judge": router, "actor": first, "actor-1": second}
