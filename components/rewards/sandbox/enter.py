"""The way in, walked by the first process of a new set of namespaces: from the machine's files to a root of its own."""

from __future__ import annotations

import math
import os
import resource
import signal

from components.rewards.sandbox import kernel
from components.rewards.sandbox.spec import CODE, OVERFLOW_ID, SCRATCH, Limits, Spec

_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_BASE = "/tmp"  # any folder will do: what is mounted there is seen in the new namespace only
_MB = 1 << 20


def enter(spec: Spec, as_root: bool) -> None:
    """Leave the machine's files, users and powers behind. Call in the child of ``kernel.clone``, ids mapped."""
    _new_root(spec)
    kernel.set_host_name(b"sandbox")
    if as_root:
        os.setgroups([])
        os.setresgid(OVERFLOW_ID, OVERFLOW_ID, OVERFLOW_ID)
        os.setresuid(OVERFLOW_ID, OVERFLOW_ID, OVERFLOW_ID)
    os.chdir(SCRATCH)
    # after the ids, whose change clears it
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)


def map_ids(pid: int, as_root: bool) -> None:
    """Give the child of ``kernel.clone`` its users: nobody, and of a launcher run by root that root, to mount with."""
    for name, mine in (("uid", os.geteuid()), ("gid", os.getegid())):
        if name == "gid" and not as_root:
            _write(f"/proc/{pid}/setgroups", "deny")
        lines = [(0, 0), (OVERFLOW_ID, OVERFLOW_ID)] if as_root else [(OVERFLOW_ID, mine)]
        _write(f"/proc/{pid}/{name}_map", "\n".join(f"{inside} {outside} 1" for inside, outside in lines))


def set_limits(limits: Limits) -> None:
    """Rlimits of this process and all below it."""
    seconds = math.ceil(limits.time_s) + 1
    for which, value in (
        (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_FSIZE, limits.scratch_mb * _MB),
        (resource.RLIMIT_NOFILE, 256), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0), (resource.RLIMIT_NPROC, limits.processes),
        (resource.RLIMIT_AS, limits.memory_mb * _MB),
    ):  # fmt: skip
        hard = resource.getrlimit(which)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (bound, bound))


def _new_root(spec: Spec) -> None:
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    # held open, since the new root may hide what lies below its mount point
    held = {path: os.open(path, os.O_PATH) for path in (*spec.shown, *_DEVICES) if not os.path.islink(path)}
    links = {path: os.readlink(path) for path in spec.shown if os.path.islink(path)}
    os.umask(0o022)
    flags = kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("tmpfs", _BASE, "tmpfs", flags, "size=16m,nr_inodes=4096,mode=755")
    os.mkdir(_BASE + SCRATCH)
    scratch = f"size={spec.limits.scratch_mb}m,nr_inodes=4096,mode=1777"
    kernel.mount("tmpfs", _BASE + SCRATCH, "tmpfs", flags | kernel.MS_NOEXEC, scratch)
    for path, descriptor in held.items():
        _mount_point(_BASE + path, os.path.isdir(f"/proc/self/fd/{descriptor}"))
        kernel.bind(f"/proc/self/fd/{descriptor}", _BASE + path, devices=path in _DEVICES)
        os.close(descriptor)
    for path, target in links.items():
        os.makedirs(os.path.dirname(_BASE + path), exist_ok=True)
        os.symlink(target, _BASE + path)
    os.mkdir(_BASE + CODE)
    for name, text in spec.files.items():
        with open(f"{_BASE}{CODE}/{name}", "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(text)
    kernel.enter_root(_BASE)
    kernel.mount("none", "/", None, kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | flags)


def _mount_point(path: str, folder: bool) -> None:
    os.makedirs(path if folder else os.path.dirname(path), exist_ok=True)
    if not folder:
        with open(path, "a"):
            pass


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
