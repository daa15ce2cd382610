"""cluster=ray: someone else's cluster is used and left as it was."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest

from slime_launch.cluster.backend import Request
from slime_launch.cluster.environment import loopback_environment, token_environment
from slime_launch.cluster.join import RayCluster
from slime_launch.errors import ComponentError
from slime_launch.guard import Guarded
from slime_launch.machine import free_ports
from slime_launch.plan import LaunchPlan
from tests.slime_launch.plans import plan_for
from tests.slime_launch.stubs import stubbed

HERE, RAY = Path(__file__).parent, str(Path(sys.executable).with_name("ray"))
GPUS = 8
LOOPBACK = loopback_environment() | {"RAY_AUTH_TOKEN": "", "RAY_ADDRESS": ""}
FREE_GPUS = """
import sys, ray
from ray._private.state import available_resources_per_node
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
print(sum(node.get("GPU", 0.0) for node in available_resources_per_node().values()))
"""


@dataclass(frozen=True)
class Theirs:
    """A cluster that is not ours."""

    address: str
    token: Path
    processes: tuple[Guarded, ...]

    def is_up(self) -> bool:
        return all(process.poll() is None for process in self.processes)

    def free_gpus(self) -> float:
        env = os.environ | LOOPBACK | token_environment(self.token)
        argv = [sys.executable, "-P", "-c", FREE_GPUS, self.address]
        return float(subprocess.run(argv, env=env, capture_output=True, text=True, check=True, timeout=60).stdout)


@contextmanager
def started(auth: dict[str, str], nodes: int) -> Iterator[Theirs]:
    """``ray start --head`` and more nodes, each under a guard."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="theirs-", dir="/tmp"))  # Ray's socket paths must stay short
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        env = os.environ | LOOPBACK | {"PYTHONPATH": str(HERE.parents[1])}
        env |= auth or token_environment(token)
        port = free_ports(1)[0]
        head = [
            RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=32",
            f"--num-gpus={GPUS}", "--include-dashboard=false", f"--temp-dir={folder / 'ray'}",
            f"--object-store-memory={80 * 2**20}",
        ]  # fmt: skip
        more = [sys.executable, str(HERE / "raylet.py"), f"127.0.0.1:{port}", "32", str(GPUS)]
        processes = []
        for index, (argv, sign) in enumerate([(head, "block forever")] + [(more, "ready")] * (nodes - 1)):
            log = folder / f"{index}.log"
            processes.append(Guarded.start(argv, env=env, log=log))
            stack.callback(processes[-1].stop)
            wait_until(lambda log=log, sign=sign: sign in log.read_text(), 60)  # type: ignore[misc]
        yield Theirs(f"127.0.0.1:{port}", token, tuple(processes))


@pytest.fixture(scope="module")
def theirs() -> Iterator[Theirs]:
    with started({}, nodes=2) as cluster:
        yield cluster


def wait_until(true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "too late"
        time.sleep(0.2)


def two_nodes(theirs: Theirs) -> LaunchPlan:
    return stubbed(plan_for(
        "+experiment=qwen3_grpo", "cluster=ray", "cluster.num_nodes=2", f"cluster.gpus_per_node={GPUS}",
        "rollout.topology.colocated=false", "rollout.topology.groups.engine.num_engines=8", "trainer.parallel.dp=8",
        f"cluster.backend.address={theirs.address}", f"cluster.backend.token_file={theirs.token}",
    ))  # fmt: skip


@contextmanager
def launcher(theirs: Theirs, folder: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    two_nodes(theirs).write(folder / "plan.json")
    env = os.environ | LOOPBACK | {"PYTHONPATH": str(HERE.parents[1])}
    argv = [sys.executable, str(HERE / "join_stubs.py"), str(folder)]
    with subprocess.Popen(
        argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            said = [process.stdout.readline()]
            while said[-1] and not said[-1].startswith("{"):
                said.append(process.stdout.readline())
            assert said[-1], "".join(said)
            yield process, json.loads(said[-1])
        finally:
            process.kill()


def assert_left_alone(theirs: Theirs, seen: dict[str, Any]) -> None:
    pids = [here["pid"] for here in seen.values()]
    wait_until(lambda: not any(map(psutil.pid_exists, pids)), 30)
    wait_until(lambda: theirs.free_gpus() == 2 * GPUS, 30)
    assert theirs.is_up()


def test_a_run_joins_and_leaves(theirs: Theirs, tmp_path: Path) -> None:
    with launcher(theirs, tmp_path) as (process, said):
        seen = said["seen"]
        assert len({node for node, _, _ in said["nodes"]}) == 2
        assert theirs.free_gpus() == 0
        assert [seen[f"trainer-{rank}"]["CUDA_VISIBLE_DEVICES"] for rank in range(8)] == list("01234567")
        assert {seen[f"engine-{rank}"]["node"] for rank in range(8)} == {said["nodes"][1][0]}
        assert seen["engine-0"]["HF_HUB_OFFLINE"] == "1", "our environment reaches nodes that are not ours"
        process.communicate("\n", timeout=60)
        assert process.returncode == 0
    assert_left_alone(theirs, seen)


def test_a_killed_launcher_leaves_nothing_of_its_own(theirs: Theirs, tmp_path: Path) -> None:
    with launcher(theirs, tmp_path) as (process, said):
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert_left_alone(theirs, said["seen"])


def asked(folder: Path) -> Request:
    return Request(port=0, num_cpus=1, num_gpus=0, store_mb=80, allow_targets=[], log=folder / "ray.log")


def join(backend: RayCluster, folder: Path) -> None:
    with mock.patch.dict(os.environ, LOOPBACK | {"HOME": str(folder)}), backend.connect(asked(folder)):
        import ray

        assert ray.cluster_resources()["CPU"] >= 32


def test_a_wrong_token_or_none_is_refused(theirs: Theirs, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("c" * 64)
    for given in (str(wrong), None):
        with pytest.raises(ComponentError, match=r"wants a token.*give cluster.backend.token_file"):
            join(RayCluster(address=theirs.address, token_file=given, connect_timeout_s=5), tmp_path)
    with pytest.raises(ComponentError, match="no such file"):
        join(RayCluster(address=theirs.address, token_file=str(tmp_path / "none")), tmp_path)
    join(RayCluster(address=theirs.address, token_file=str(theirs.token)), tmp_path)


def test_an_open_cluster_only_where_it_is_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with started({"RAY_AUTH_MODE": "disabled"}, nodes=1) as open_one:
        for token in (None, str(open_one.token)):
            with pytest.raises(ComponentError, match="allow_unauthenticated=true"):
                join(RayCluster(address=open_one.address, token_file=token), tmp_path)
        join(RayCluster(address=open_one.address, allow_unauthenticated=True), tmp_path)
        assert "warning: the Ray cluster at" in capsys.readouterr().err
        assert open_one.is_up()


def test_no_cluster_is_said_so(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(ComponentError, match=rf"{address} cannot be joined.*check cluster.backend.address"):
        join(RayCluster(address=address, connect_timeout_s=1), tmp_path)


def test_rays_client_is_not_supported(tmp_path: Path) -> None:
    with pytest.raises(ComponentError, match="give host:port"):
        join(RayCluster(address="ray://host:10001"), tmp_path)
