"""The guard ends whole process trees, whichever way the parent goes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from slime_launch.guard import Guarded, descendants

# starts a grandchild in a session of its own, which ignores SIGTERM, and writes both pids
TREE = """
import os, signal, subprocess, sys, time
child = subprocess.Popen(["sh", "-c", "trap '' TERM; while true; do sleep 0.1; done"], start_new_session=True)
print(os.getpid(), child.pid, flush=True)
time.sleep(60)
"""


def start_tree(log: Path) -> tuple[Guarded, list[int]]:
    guarded = Guarded.start([sys.executable, "-c", TREE], env=os.environ, log=log, grace_s=0.3)
    return guarded, wait_for_pids(log)


def wait_for_pids(log: Path) -> list[int]:
    for _ in range(200):
        if log.exists() and len(log.read_text().split()) == 2:
            return [int(pid) for pid in log.read_text().split()]
        time.sleep(0.05)
    raise AssertionError("the tree did not start")


def wait_gone(pids: list[int], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
            return True
        time.sleep(0.05)
    return False


def test_stop_ends_the_whole_tree(tmp_path: Path) -> None:
    guarded, pids = start_tree(tmp_path / "log")
    assert set(pids) <= set(descendants(os.getpid()))
    guarded.stop()
    guarded.stop()
    assert wait_gone([*pids, guarded.pid])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_parent_killed(tmp_path: Path, number: signal.Signals) -> None:
    log = tmp_path / "log"
    code = f"""
import os, sys, time
from pathlib import Path
from slime_launch.guard import Guarded
Guarded.start([sys.executable, "-c", {TREE!r}], env=os.environ, log=Path({str(log)!r}), grace_s=0.3)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    pids = wait_for_pids(log)
    parent.send_signal(number)
    parent.wait()
    assert wait_gone(pids)


def test_temporary_files_go_with_the_tree(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = "import os, tempfile, time; print(os.environ['TMPDIR'], tempfile.mkdtemp(), flush=True); time.sleep(60)"
    guarded = Guarded.start([sys.executable, "-c", code], env=os.environ, log=log, grace_s=0.3)
    for _ in range(200):
        if len(log.read_text().split()) == 2:
            break
        time.sleep(0.05)
    folder, inside = map(Path, log.read_text().split())
    assert inside.is_dir() and inside.parent == folder
    guarded.stop()
    assert not folder.exists()


def test_exit_code_and_orphans_of_a_command_that_ends(tmp_path: Path) -> None:
    code = TREE.replace("time.sleep(60)", "sys.exit(7)")
    log = tmp_path / "log"
    guarded = Guarded.start([sys.executable, "-c", code], env=os.environ, log=log, grace_s=0.2)
    pids = wait_for_pids(log)
    assert wait_gone(pids)
    for _ in range(100):
        if guarded.poll() is not None:
            break
        time.sleep(0.05)
    assert guarded.poll() == 7
    guarded.stop()


def test_killed_command_reports_its_signal(tmp_path: Path) -> None:
    guarded = Guarded.start(["sh", "-c", "kill -KILL $$"], env=os.environ, log=tmp_path / "log")
    for _ in range(100):
        if guarded.poll() is not None:
            break
        time.sleep(0.05)
    assert guarded.poll() == 128 + signal.SIGKILL
    guarded.stop()
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600
