"""The same sandbox with namespaces made by bubblewrap, for machines that let only it make them."""

from __future__ import annotations

import os
from collections.abc import Iterator

from components.rewards.sandbox import enter, filter
from components.rewards.sandbox.spec import CODE, OVERFLOW_ID, SCRATCH, Spec

_UNSHARE = ("user", "pid", "net", "ipc", "uts", "cgroup-try")
_MB = 1 << 20


def become(spec: Spec, as_root: bool) -> None:
    """Turn this process into bubblewrap with the code below it; returns by OSError only."""
    if as_root:  # inside, root would be nobody by name alone, and is not held to a number of processes
        os.setgroups([])
        os.setresgid(OVERFLOW_ID, OVERFLOW_ID, OVERFLOW_ID)
        os.setresuid(OVERFLOW_ID, OVERFLOW_ID, OVERFLOW_ID)
    enter.set_limits(spec.limits)
    os.execve(spec.bubblewrap, list(_argv(spec)), {})


def _argv(spec: Spec) -> Iterator[str]:
    yield spec.bubblewrap
    yield from (f"--unshare-{name}" for name in _UNSHARE)
    yield from ("--uid", str(OVERFLOW_ID), "--gid", str(OVERFLOW_ID), "--hostname", "sandbox")
    yield from ("--die-with-parent", "--new-session", "--as-pid-1", "--cap-drop", "ALL", "--clearenv")
    for name, value in spec.environment().items():
        yield from ("--setenv", name, value)
    yield from ("--size", str(spec.limits.scratch_mb * _MB), "--tmpfs", SCRATCH, "--chdir", SCRATCH)
    for path in spec.shown:
        yield from ("--symlink", os.readlink(path), path) if os.path.islink(path) else ("--ro-bind", path, path)
    for device in enter.DEVICES:
        yield from ("--dev-bind", device, device)
    for name, text in spec.files.items():
        yield from ("--ro-bind-data", str(_held(text.encode(errors="surrogatepass"))), f"{CODE}/{name}")
    yield from ("--remount-ro", "/", "--seccomp", str(_held(filter.program())), "--", *spec.argv())


def _held(data: bytes) -> int:
    """A file in memory that the next program finds open, at its beginning."""
    descriptor = os.memfd_create("data", 0)
    os.write(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
