"""Hostile programs are contained, the run goes on, and nothing of them is left."""

import asyncio
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from components.rewards.sandbox import sandbox as module
from components.rewards.sandbox.sandbox import Sandbox
from components.rewards.sandbox.spec import Limits
from slime_launch.errors import ComponentError
from slime_launch.guard import descendants
from tests.components.rewards.hostile import SNIPPETS, no_sandbox

pytestmark = pytest.mark.skipif(no_sandbox() is not None, reason=str(no_sandbox()))
LIMITS = Limits(time_s=2.5, memory_mb=256, scratch_mb=8, output_kb=64, processes=16)
GOOD = {"main.py": "import sys, threading, subprocess, json, decimal\nprint(int(sys.stdin.read()) + 1)"}


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """Things of the machine that code must not reach: a file, a variable, a port, a socket, this process."""
    canary = tmp_path / "canary"
    canary.write_text("secret")
    for path in (canary, *list(tmp_path.parents)[:3]):
        path.chmod(path.stat().st_mode | 0o007)
    monkeypatch.setenv("SLIME_SECRET", "secret")
    unix = str(tmp_path / "socket")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(unix)
        local.listen()
        server.setblocking(False)
        yield {"canary": str(canary), "port": server.getsockname()[1], "unix": unix, "parent": os.getpid()}
        with pytest.raises(BlockingIOError):
            server.accept()
    assert canary.read_text() == "secret"


@pytest.fixture
def started():
    """What this test has started and still runs; other tests may have left a process of theirs."""
    before = set(descendants(os.getpid()))
    return lambda: set(descendants(os.getpid())) - before


def left() -> list[int]:
    """Processes of sandboxed code anywhere on the machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"/code/main.py" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def fill(code: str, values: dict[str, object]) -> str:
    for name, value in values.items():
        code = code.replace(f"{{{name}!r}}", repr(value)).replace(f"{{{name}}}", str(value))
    return code


def test_hostile_programs_are_contained_and_the_run_goes_on(outside, started):
    async def everything():
        sandbox = Sandbox(LIMITS, concurrency=6)
        bad = [sandbox.run({"main.py": fill(code, outside)}, "main.py", [""]) for code, _ in SNIPPETS.values()]
        good = [sandbox.run(GOOD, "main.py", [str(number)]) for number in range(6)]
        return await asyncio.gather(*bad), await asyncio.gather(*good)

    before = set(os.listdir("/tmp"))
    bad, good = asyncio.run(everything())
    for (name, (_, wanted)), (run,) in zip(SNIPPETS.items(), bad, strict=True):
        assert wanted in ("fails", run.ended), f"{name}: {run}"
        assert (run.code == 0) == (wanted == "exit"), f"{name}: {run}"
        assert wanted != "exit" or run.stdout == "held\n", f"{name}: {run}"
        assert len(run.stdout) <= 64 << 10 and len(run.stderr) <= 4 << 10, name
    assert [run.stdout for (run,) in good] == [f"{number + 1}\n" for number in range(6)]
    assert not left() and not started()
    assert not {name for name in set(os.listdir("/tmp")) - before if name.isdigit()}


def test_each_input_has_a_sandbox_of_its_own():
    code = "import os, sys\nprint(os.path.exists('/tmp/seen'), sys.stdin.read(), os.getpid())\nopen('/tmp/seen', 'w')"
    runs = asyncio.run(Sandbox(LIMITS).run({"main.py": code}, "main.py", ["a", "ü\n\ud800", ""]))
    assert [run.stdout for run in runs][0::2] == ["False a 1\n", "False  1\n"]
    assert runs[1].stdout.startswith("False ü")


@pytest.mark.parametrize("how", ["cancelled", "supervisor killed", "supervisor stopped and hung up on"])
def test_nothing_outlives_whoever_asked(how, started):
    async def ask():
        task = asyncio.create_task(Sandbox(LIMITS).run({"main.py": "while True: pass"}, "main.py", [""] * 30))
        while not left():
            await asyncio.sleep(0.01)
        supervisor = min(started())
        if how == "supervisor killed":
            os.kill(supervisor, signal.SIGKILL)
            with pytest.raises(ComponentError, match="supervisor was killed"):
                await task
            return
        if how.startswith("supervisor stopped"):
            os.kill(supervisor, signal.SIGSTOP)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_HANG_UP_S", 0.5)
        asyncio.run(ask())
    deadline = time.monotonic() + 5
    while left() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left() and not started()


def test_no_sandbox_no_run(monkeypatch):
    """Refused, with what to do about it, where the kernel makes no namespaces."""
    module.require_namespaces.cache_clear()
    refusing = (
        "import sys; sys.path.insert(0, sys.argv[1]); from components.rewards.sandbox import filter, kernel; "
        "filter._FORBIDDEN.clear(); kernel.filter_system_calls(filter.program())"
    )
    monkeypatch.setattr(module, "_SUPERVISOR", f"{refusing}; {module._SUPERVISOR}")
    try:
        with pytest.raises(
            ComponentError, match=r"no sandbox .*can be had here \(.*clone: Operation not permitted.*sysctl"
        ):
            Sandbox(LIMITS)
    finally:
        module.require_namespaces.cache_clear()


def test_cancelled_at_any_moment(started):
    async def ask(turns):
        task = asyncio.create_task(Sandbox(LIMITS).run({"main.py": "while True: pass"}, "main.py", [""] * 30))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for turns in range(12):
        asyncio.run(ask(turns))
    assert not left() and not started()


def test_a_set_up_that_fails_is_no_result_of_the_code(tmp_path):
    folder = tmp_path / "packages"
    folder.mkdir()
    sandbox = Sandbox(LIMITS, folders=[str(folder)])
    folder.rmdir()
    sandbox._folders = [str(folder)]
    with pytest.raises(ComponentError, match=r"folders=.*packages"):
        Sandbox(LIMITS, folders=[str(folder)])
    module_shown = module._shown

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_shown", lambda python, folders: [*module_shown(python, []), *folders])
        with pytest.raises(ComponentError, match=r"the sandbox failed: .*No such file .*packages"):
            asyncio.run(sandbox.run(GOOD, "main.py", ["1"]))


def test_folders_can_be_imported_from(tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "extra.py").write_text("value = 5")
    sandbox = Sandbox(LIMITS, folders=[str(tmp_path)])
    (run,) = asyncio.run(sandbox.run({"main.py": "import extra; print(extra.value)"}, "main.py", [""]))
    assert run.stdout == "5\n", run
