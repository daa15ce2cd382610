"""The supervisor: a process of ours that runs untrusted programs one after the other, each in namespaces of its own.

It reads one line, a ``Spec``, from standard input and writes a line, a ``Run``, for each of its inputs. Its standard
input stays open as a lifeline: when it ends, so does whatever runs. It holds nothing that the code may not know.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import selectors
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from components.rewards.sandbox import enter, filter, kernel
from components.rewards.sandbox.spec import Limits, Run, Spec

_LOOK_EVERY_S = 0.03
_ERROR_KB = 4
_PAGE = os.sysconf("SC_PAGE_SIZE")
_EXIT_BROKEN = 125
_LIFELINE = 0


class BrokenError(RuntimeError):
    """The sandbox itself failed, not the code in it."""


def main() -> None:
    """Serve one spec."""
    line = sys.stdin.buffer.readline()
    given = json.loads(line)
    spec = Spec(**given | {"limits": Limits(**given["limits"])})
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
        for text in spec.inputs:
            print(json.dumps(asdict(_run(spec, text))), flush=True)
    except (BrokenError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


@dataclass
class _Pipe:
    """One output of the code: its first bytes (``keep_last`` false) or its last."""

    limit: int
    keep_last: bool = False
    data: bytearray = field(default_factory=bytearray)

    def add(self, more: bytes) -> bool:
        """Take more; false when that is too much."""
        self.data += more
        if self.keep_last:
            del self.data[: -self.limit]
        fits = len(self.data) <= self.limit
        del self.data[self.limit :]
        return fits


def _run(spec: Spec, text: str) -> Run:
    given = _stdin(text)
    out_r, out_w = os.pipe()
    err_r, err_w = os.pipe()
    try:
        pid = _start(spec, (given, out_w, err_w))
    finally:
        for descriptor in (given, out_w, err_w):
            os.close(descriptor)
    pipes = {out_r: _Pipe(spec.limits.output_kb << 10), err_r: _Pipe(_ERROR_KB << 10, keep_last=True)}
    try:
        ended = _watch(pid, pipes, spec.limits)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        # returns once every process of its namespace is gone
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        _drain(pipes)
    stdout, stderr = (pipe.data.decode(errors="replace") for pipe in pipes.values())
    return Run(ended, code, stdout, stderr)


def _stdin(text: str) -> int:
    """A sealed file in memory, read to its end by whoever wants to; nobody has to feed a pipe."""
    import fcntl

    descriptor = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(text.encode(errors="surrogatepass"))
    os.lseek(descriptor, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def _start(spec: Spec, streams: tuple[int, int, int]) -> int:
    """The pid of the first process inside, once it runs the code.

    Raises BrokenError when it does not come so far.
    """
    go_r, go_w = os.pipe()
    told_r, told_w = os.pipe()
    as_root = os.geteuid() == 0
    pid = kernel.clone()
    if pid == 0:
        _child(spec, streams, (go_r, go_w, told_w), as_root)
    os.close(go_r)
    os.close(told_w)
    try:
        enter.map_ids(pid, as_root)
        os.write(go_w, b".")
        with open(told_r, "rb") as told:
            trouble = told.read().decode(errors="replace")
    except OSError as error:
        trouble = f"users cannot be mapped: {error}"
    finally:
        os.close(go_w)  # not before the child is bound to this process
    if trouble:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise BrokenError(trouble)
    return pid


def _child(spec: Spec, streams: tuple[int, int, int], pipes: tuple[int, int, int], as_root: bool) -> None:
    """Never returns. Every descriptor but the three streams closes when the program starts."""
    go, other_end, told = pipes
    try:
        os.close(other_end)
        if not os.read(go, 1):
            os._exit(_EXIT_BROKEN)
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
        enter.enter(spec, as_root)
        if select.select([go], [], [], 0)[0]:  # the supervisor died before this process was bound to it
            os._exit(_EXIT_BROKEN)
        enter.set_limits(spec.limits)
        kernel.filter_system_calls(filter.program())
        os.execve(spec.python, spec.argv(), spec.environment())
    except BaseException as error:
        os.write(told, f"{type(error).__name__}: {error}".encode())
    os._exit(_EXIT_BROKEN)


def _watch(pid: int, pipes: dict[int, _Pipe], limits: Limits) -> str:
    """Collect what the code writes until it ends or has to be ended; why it did."""
    deadline = time.monotonic() + limits.time_s
    ends = os.pidfd_open(pid)
    try:
        with selectors.DefaultSelector() as selector:
            for descriptor in (_LIFELINE, ends, *pipes):
                selector.register(descriptor, selectors.EVENT_READ)
            while time.monotonic() < deadline:
                ready = [key.fd for key, _ in selector.select(_LOOK_EVERY_S)]
                if _LIFELINE in ready:
                    raise BrokenError("nobody waits for the answer")
                for descriptor in set(ready) & pipes.keys():
                    more = os.read(descriptor, 1 << 16)
                    if not more:
                        selector.unregister(descriptor)
                    elif not pipes[descriptor].add(more) and not pipes[descriptor].keep_last:
                        return "output"
                if ends in ready:
                    return "exit"
                if _used_mb(pid) > limits.memory_mb:
                    return "memory"
        return "time"
    finally:
        os.close(ends)


def _drain(pipes: dict[int, _Pipe]) -> None:
    """What is left in the pipes, whose writers are gone."""
    for descriptor, pipe in pipes.items():
        while more := os.read(descriptor, 1 << 16):
            pipe.add(more)
        os.close(descriptor)


def _used_mb(pid: int) -> float:
    """Resident memory of a process and all below it."""
    pages = 0
    for process in _tree(pid):
        with contextlib.suppress(OSError), open(f"/proc/{process}/statm") as file:
            pages += int(file.read().split()[1])
    return pages * _PAGE / (1 << 20)


def _tree(pid: int) -> Iterator[int]:
    queue = [pid]
    while queue:
        process = queue.pop()
        yield process
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{process}/task"):
                with open(f"/proc/{process}/task/{thread}/children") as file:
                    queue += map(int, file.read().split())
