"""The seccomp program: system calls that code in the sandbox has no business with.

Namespaces and the lack of capabilities hold the code already; this takes away the kernel's less tried corners, new
namespaces, and what neither namespaces nor rlimits count: memory in memfds and System V segments, sockets of families
that are not namespaced (vsock), and the signal by which the code ends with its supervisor.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Iterator

from components.rewards.sandbox.kernel import NEW_EVERYTHING, PR_SET_PDEATHSIG

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_FORBIDDEN = {  # name: (x86_64, aarch64)
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "unshare": (272, 97), "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60),
    "syslog": (103, 116),
}  # fmt: skip
_CLONE3 = (435, 435)
_SOCKET, _CLONE, _PRCTL = (41, 198), (56, 220), (157, 167)
_AF_UNIX = 1
_X32 = 0x40000000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000


def program() -> bytes:
    """The program for this machine, as struct sock_filter entries of 8 bytes."""
    machine = platform.machine()
    column = list(_ARCHITECTURES).index(machine)
    lines = [
        _line(_LOAD, _ARCHITECTURE_AT), _line(_EQUAL, _ARCHITECTURES[machine], 1, 0), _line(_RETURN, _KILL),
        _line(_LOAD, _NUMBER_AT),
    ]  # fmt: skip
    if machine == "x86_64":
        lines += [_line(_AT_LEAST, _X32, 0, 1), _line(_RETURN, _KILL)]
    # glibc goes on with clone, whose flags can be looked at
    lines += _refuse(_CLONE3[column], errno.ENOSYS)
    for numbers in _FORBIDDEN.values():
        lines += _refuse(numbers[column], errno.EPERM)
    lines += _look(_SOCKET[column], _EQUAL, _AF_UNIX, good=True)
    lines += _look(_CLONE[column], _ANY_BIT, NEW_EVERYTHING, good=False)
    lines += _look(_PRCTL[column], _EQUAL, PR_SET_PDEATHSIG, good=False)
    return b"".join([*lines, _line(_RETURN, _ALLOW)])


def _line(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, value)


def _refuse(number: int, error: int) -> Iterator[bytes]:
    yield _line(_EQUAL, number, 0, 1)
    yield _line(_RETURN, _ERROR | error)


def _look(number: int, test: int, value: int, *, good: bool) -> Iterator[bytes]:
    """Of one call look at the first argument; a test that holds allows it (``good``) or refuses it."""
    yield _line(_EQUAL, number, 0, 4)
    yield _line(_LOAD, _FIRST_ARGUMENT_AT)
    yield _line(test, value, *((1, 0) if good else (0, 1)))
    yield _line(_RETURN, _ERROR | errno.EPERM)
    yield _line(_RETURN, _ALLOW)
