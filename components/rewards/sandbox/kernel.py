"""System calls that Python 3.11 lacks. Each raises OSError with the call's name."""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Any

MS_REC, MS_PRIVATE, MS_BIND, MS_REMOUNT = 0x4000, 0x40000, 0x1000, 0x20
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 0x1, 0x2, 0x4
NAMESPACES = {
    "mnt": 0x00020000, "cgroup": 0x02000000, "uts": 0x04000000, "ipc": 0x08000000,
    "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000,
}  # fmt: skip
NEW_EVERYTHING = sum(NAMESPACES.values())
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 1, 38, 22
_SECCOMP_MODE_FILTER = 2
_MNT_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_SIGCHLD = 17

# by machine: clone, pivot_root, mount_setattr
_NUMBERS = {"x86_64": (56, 155, 442), "aarch64": (220, 41, 442)}
# PyDLL keeps the interpreter lock, so that the child of clone has it
_LIBC = ctypes.PyDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def supported() -> bool:
    """Whether the numbers of this machine's system calls are known."""
    return platform.machine() in _NUMBERS


def _syscall(which: int, *args: Any) -> int:
    return int(_LIBC.syscall(ctypes.c_long(_NUMBERS[platform.machine()][which]), *args))


def _checked(name: str, result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def clone() -> int:
    """Fork into new namespaces of every kind: 0 in the child, which is the first process there; its id in the parent.

    The process must have one thread.
    """
    nothing = [ctypes.c_long(0)] * 4
    return _checked("clone", _syscall(0, ctypes.c_ulong(NEW_EVERYTHING | _SIGCHLD), *nothing))


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2)."""
    made = _LIBC.mount(
        source.encode(), target.encode(), kind.encode() if kind else None, ctypes.c_ulong(flags), options.encode()
    )
    _checked(f"mount {source} at {target}", made)


def bind(source: str, target: str, *, devices: bool = False) -> None:
    """Show ``source`` and whatever is mounted below it at ``target``, read-only."""
    mount(source, target, None, MS_BIND | MS_REC)
    attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | (0 if devices else MOUNT_ATTR_NODEV)
    attr = _MountAttr(attributes, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attr))
    done = _syscall(2, ctypes.c_int(_AT_FDCWD), target.encode(), ctypes.c_uint(_AT_RECURSIVE), ctypes.byref(attr), size)
    _checked(f"make {target} read-only", done)


def enter_root(folder: str) -> None:
    """Make ``folder``, a mount, the root of this mount namespace and forget the old one."""
    os.chdir(folder)
    _checked("pivot_root", _syscall(1, b".", b"."))
    _checked("umount the old root", _LIBC.umount2(b".", _MNT_DETACH))
    os.chdir("/")


def set_host_name(name: bytes) -> None:
    """sethostname(2)."""
    _checked("sethostname", _LIBC.sethostname(name, ctypes.c_size_t(len(name))))


def prctl(option: int, value: int) -> None:
    """prctl(2) with one number."""
    zeros = [ctypes.c_ulong(0)] * 3
    _checked(f"prctl {option}", _LIBC.prctl(option, ctypes.c_ulong(value), *zeros))


def filter_system_calls(program: bytes) -> None:
    """Bind this process and all below it to a seccomp program, for good."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    loaded = _Program(len(program) // 8, program)
    mode = ctypes.c_ulong(_SECCOMP_MODE_FILTER)
    _checked("seccomp", _LIBC.prctl(PR_SET_SECCOMP, mode, ctypes.byref(loaded), ctypes.c_ulong(0), ctypes.c_ulong(0)))
