"""What a plan must know of engines that someone else runs, and how weights and keys reach which engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from slime_launch.errors import ConfigError
from tests.slime_launch.commands import check_refusal
from tests.slime_launch.plans import plan_for

QWEN = "+experiment=qwen3_grpo"
G = "rollout.topology.groups.engine"
THERE, HERE = f"{G}.urls=[http://10.0.0.7:30000]", f"{G}.urls=[http://127.0.0.1:30000]"
EXTERNAL = [QWEN, "rollout/topology=external"]
ADMIN = f"{G}.admin_key_file=/k"
KEEPS = "+rollout.topology.models.actor.update_weights=false"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (
            [*EXTERNAL, HERE],
            f"error: {G}.admin_key_file=None: model actor takes the trainer's weights, for which engines want their "
            "admin token; name a file with it, or set update_weights: false of the model",
        ),
        (
            [*EXTERNAL, THERE, ADMIN, "mode=run"],
            f"error: {G}.urls=http://10.0.0.7:30000: an engine on another machine cannot reach a trainer that listens "
            "on loopback only; use cluster=ray",
        ),
    ],
)
def test_engines_that_could_not_take_weights_are_refused(
    args: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check_refusal(args, line, capsys)


def test_engines_that_keep_their_weights_need_no_admin_token() -> None:
    engine = plan_for(*EXTERNAL, THERE, KEEPS).of_kind("external")[0]
    assert engine.args["weight_sync"] is None
    assert engine.provides == ("actor/engine_url",)
    with pytest.raises(ConfigError, match="admin_key_file"):
        plan_for(*EXTERNAL, THERE)


@pytest.mark.parametrize(
    ("change", "via"),
    [([], "broadcast"), ([f"{G}.tp=2"], "broadcast"), ([f"{G}.dp=2"], "disk"), ([f"{G}.pp=2"], "disk")],
)
def test_weights_are_broadcast_unless_ranks_are_replicas_or_stages(change: list[str], via: str) -> None:
    sync = plan_for(QWEN, *change).of_kind("regular")[0].args["weight_sync"]
    assert sync["via"] == via
    assert sync.get("folder") == ("weights/engine-0" if via == "disk" else None)
    assert ("port" in sync) == (via == "broadcast")


def test_split_engines_of_a_model_have_a_key_in_common() -> None:
    plan = plan_for(QWEN, "rollout/topology=pd", "cluster.gpus_per_node=8")
    keys = {actor.kind: actor.args.get("shared_key") for actor in plan.of_kind("prefill", "decode", "router")}
    assert keys == {"prefill": "keys/actor", "decode": "keys/actor", "router": None}
    assert plan_for(QWEN).of_kind("regular")[0].args["shared_key"] is None
