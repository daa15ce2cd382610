"""Runs untrusted Python programs, so many at a time, out of reach of everything of ours."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from components.rewards.loops import PerLoop
from components.rewards.sandbox import kernel
from components.rewards.sandbox.spec import CODE, Limits, Run, Spec
from slime_launch.errors import ComponentError

_ROOT = str(Path(__file__).resolve().parents[3])
_SUPERVISOR = "import sys; sys.path.insert(0, sys.argv[1]); from components.rewards.sandbox.jail import main; main()"
_LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
_OLDEST_KERNEL = (5, 14)
_SETUP_S = 1.0
"""Of each run, beside the time that the code gets; a tenth of it where the machine is not overloaded."""
_SPARE_S = 20.0
_HANG_UP_S = 10.0
_LINE_BYTES = 64 << 20
_PROBE = Limits(time_s=20.0, memory_mb=512, scratch_mb=4, output_kb=4, processes=8)
GoOn = Callable[[int, Run], bool]


class Sandbox:
    """User, pid, mount, network, ipc, uts and cgroup namespaces, a root of its own with nothing in it but the
    interpreter and its libraries (read-only) and a /tmp in memory, no capabilities, a seccomp filter, rlimits.

    limits: of each run. concurrency: runs at a time; null: the CPU cores that this process may use. folders: more
    folders that the code may read and import from, e.g. a site-packages.
    Raises ComponentError where the kernel gives no such sandbox: there is no weaker one.
    """

    def __init__(self, limits: Limits, concurrency: int | None = None, folders: Sequence[str] = ()) -> None:
        missing = [folder for folder in folders if not Path(folder).is_absolute() or not Path(folder).is_dir()]
        if missing:
            raise ComponentError(f"folders={missing}: not absolute paths of folders; mend or remove them")
        self._limits, self._folders = limits, [str(Path(folder)) for folder in folders]
        require_namespaces()
        width = concurrency or len(os.sched_getaffinity(0))
        self._slots = PerLoop(lambda: asyncio.Semaphore(width))

    async def run(
        self, files: dict[str, str], script: str, inputs: Sequence[str], go_on: GoOn = lambda number, run: True
    ) -> list[Run]:
        """Start ``script`` of ``files`` once for each input, which it finds as its standard input.

        go_on: asked after each run, by number from 0; when it says no, the inputs that are left are not run.

        Raises ComponentError when the sandbox fails, never for what the code does. Nothing is left running, not even
        when this is cancelled.
        """
        spec = _spec(files, script, inputs, self._limits, self._folders)
        async with self._slots.get():
            process = await _start()
            try:
                limit_s = len(inputs) * (self._limits.time_s + _SETUP_S) + _SPARE_S
                return await asyncio.wait_for(_converse(process, spec, go_on), limit_s)
            except TimeoutError:
                raise ComponentError(f"the sandbox did not end within {limit_s:.0f} s") from None
            finally:
                await _end(process)


async def _start() -> asyncio.subprocess.Process:
    """A supervisor. Cancelled on the way, asyncio would wait for it for ever: so it is started first, then ended."""
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *_argv(),
            env={},
            cwd="/",
            start_new_session=True,
            limit=_LINE_BYTES,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await _end(await starting)
        raise


async def _converse(process: asyncio.subprocess.Process, spec: Spec, go_on: GoOn) -> list[Run]:
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    with contextlib.suppress(ConnectionError):  # its own message says why it went
        process.stdin.write(json.dumps(asdict(spec)).encode() + b"\n")
        await process.stdin.drain()
    runs: list[Run] = []
    for number in range(len(spec.inputs)):
        line = await process.stdout.readline()
        if not line.endswith(b"\n"):
            error = (await process.stderr.read()).decode(errors="replace").strip()
            raise ComponentError(f"the sandbox failed: {error[-2000:] or 'its supervisor was killed'}")
        runs.append(Run(**json.loads(line)))
        if not go_on(number, runs[-1]):
            break
    return runs


async def _end(process: asyncio.subprocess.Process) -> None:
    """Hang up, at which the supervisor ends what runs and then itself."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), _HANG_UP_S)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()  # the code goes with it
        await process.wait()


def _argv() -> list[str]:
    return [sys.executable, "-I", "-S", "-B", "-c", _SUPERVISOR, _ROOT]


def _spec(files: dict[str, str], script: str, inputs: Sequence[str], limits: Limits, folders: list[str]) -> Spec:
    python = os.path.realpath(sys.executable)
    return Spec(python, _shown(python, folders), folders, files, script, list(inputs), limits)


def _shown(python: str, folders: Sequence[str]) -> list[str]:
    """The interpreter, its library and the machine's shared libraries: what is there, and nothing twice."""
    home = Path(sys.base_prefix).resolve()
    wanted = [python, *_LIBRARIES, str(home / "lib"), str(home / "lib64"), sysconfig.get_path("stdlib"), *folders]
    shown: list[str] = []
    for path in wanted:
        if os.path.exists(path) and not any(Path(path).is_relative_to(other) for other in shown):
            shown.append(path)
    return shown


@lru_cache(maxsize=1)
def require_namespaces() -> None:
    """Raise ComponentError, which says what stands in the way, unless a program runs in a sandbox here."""
    if (fault := _probe()) is not None:
        raise ComponentError(
            f"no sandbox for untrusted code can be had here ({fault}): let the launcher make user namespaces (sysctl "
            "kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns, "
            "user.max_user_namespaces; a container needs them allowed too), or drop the reward that runs code"
        )


def _probe() -> str | None:
    """What keeps a program from saying yes, None when it does."""
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    if not kernel.supported() or release < _OLDEST_KERNEL:
        return f"Linux 5.14 or newer on x86_64 or aarch64 is needed, not {os.uname().release} on {os.uname().machine}"
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        return "the kernel lists no children in /proc (CONFIG_PROC_CHILDREN), so memory cannot be bounded"
    files = {"probe.py": "import ssl, ctypes, json; print('yes')"}
    line = json.dumps(asdict(_spec(files, "probe.py", [""], _PROBE, []))).encode() + b"\n"
    with subprocess.Popen(
        _argv(), env={}, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(line)  # and left open: the supervisor ends with it
        process.stdin.flush()
        answer = process.stdout.readline()
        process.kill()
        error = process.stderr.read().decode(errors="replace").strip()
    if not answer.endswith(b"\n"):
        return error or "its supervisor was killed"
    run = Run(**json.loads(answer))
    return None if run.stdout == "yes\n" else f"{CODE}/probe.py ended with {run.code}: {run.stderr.strip()[-300:]}"
