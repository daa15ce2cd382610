"""Programs that try to get out of the sandbox, or to hurt the machine; each prints ``held`` when it could not.

By name: (code, how it must end). ``exit``: by itself, having printed nothing but ``held``; ``fails``: with an error
or a signal, its own or ours; time, memory and output: stopped for that. Of several ways out
none may work.
"""

from components.rewards.sandbox.sandbox import require_namespaces
from slime_launch.errors import ComponentError

TRY = """
import ctypes, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def failed(value):
    if value < 0:
        raise OSError(ctypes.get_errno(), "refused")
def attempt(*ways):
    for number, way in enumerate(ways):
        try:
            print("way", number, "gave", way())
            sys.exit(3)
        except (OSError, KeyError):
            pass
    print("held")
"""

SNIPPETS: dict[str, tuple[str, str]] = {
    "fork bomb": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", "time"),
    "thread bomb": (
        "import threading, time\nfor _ in range(10000): threading.Thread(target=time.sleep, args=(60,)).start()",
        "time",
    ),
    "endless output": ("while True: print('x' * 4096)", "output"),
    "endless errors": ("import os\nwhile True: os.write(2, b'x' * 4096)", "time"),
    "memory": ("blocks = [b'x' * (1 << 20) for _ in range(100000)]", "fails"),
    "memory of many": (
        "import os, time\nfor _ in range(6):\n    if os.fork() == 0: break\nheld = b'x' * (60 << 20)\ntime.sleep(60)",
        "memory",
    ),
    "memory nobody counts": (
        TRY + "attempt(lambda: os.memfd_create('x'), lambda: failed(libc.shmget(0, 1 << 20, 0o1600)))",
        "exit",
    ),
    "deep recursion": ("import sys\nsys.setrecursionlimit(1 << 30)\ndef f(): f()\nf()", "fails"),
    "infinite loop": ("while True: pass", "time"),
    "sleeps for ever": ("import time\ntime.sleep(1e6)", "time"),
    "ignores signals": (
        "import signal, time\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: time.sleep(1)",
        "time",
    ),
    "daemon": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(1e6)\n"
        "    os._exit(0)\nprint('held')",
        "exit",
    ),
    "clears its death signal": (TRY + "attempt(lambda: failed(libc.prctl(1, 0, 0, 0, 0)))", "exit"),
    "kills everybody": (
        TRY + "attempt(lambda: os.kill(-1, 9), lambda: os.kill({parent}, 9), lambda: os.kill(2, 9))",
        "exit",
    ),
    "traces": (
        TRY + "attempt(*(lambda p=p: failed(libc.ptrace(16, p, 0, 0)) for p in (1, os.getppid(), {parent})),\n"
        "lambda: os.kill({parent}, 0))",
        "exit",
    ),
    "pokes in /proc": (
        TRY + "attempt(lambda: os.listdir('/proc'), lambda: open('/proc/sys/kernel/core_pattern', 'w'),\n"
        "lambda: os.listdir('/sys'), lambda: os.listdir('/proc/{parent}/root'), lambda: os.readlink('/proc/self/exe'))",
        "exit",
    ),
    "reads secrets": (
        TRY + "attempt(*(lambda p=p: open(p).read() for p in ('/etc/passwd', '/etc/shadow', '/root/.ssh/id_rsa',\n"
        "'/proc/1/environ', '/proc/{parent}/environ', {canary!r})), lambda: os.environ['SLIME_SECRET'],\n"
        "lambda: os.listdir('/home'), lambda: os.listdir('/var'))",
        "exit",
    ),
    "writes outside": (
        TRY + "attempt(*(lambda p=p: open(p, 'w').write('x') for p in ('/x', '/code/main.py', '/usr/lib/x', '/dev/x',\n"
        "'/etc/ld.so.cache', {canary!r}, os.__file__, sys.executable)), lambda: os.chmod('/code', 0o777),\n"
        "lambda: os.mkdir('/home'))",
        "exit",
    ),
    "links out": (
        TRY + "os.symlink('/../../../../..' + {canary!r}, 'out')\n"
        "attempt(lambda: open('out').read(), lambda: os.chroot('/tmp'), lambda: os.link('/usr/lib/os.py', 'x'),\n"
        "lambda: open('/tmp/../../../..' + {canary!r}).read(), lambda: os.mknod('d', 0o60666, os.makedev(8, 0)))",
        "exit",
    ),
    "fills the disk": (
        "import os\ntry:\n    for n in range(10**6): open(f'/tmp/{n}', 'wb').write(b'x' * (1 << 20))\n"
        "except OSError: print('held')",
        "exit",
    ),
    "grows one file": (
        "import os, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "try: os.truncate(open('/tmp/x', 'wb').fileno(), 1 << 40)\nexcept OSError: print('held')",
        "exit",
    ),
    "opens everything": ("files = []\nwhile True: files.append(open('/dev/null'))", "fails"),
    "network": (
        TRY + "attempt(lambda: socket.create_connection(('127.0.0.1', {port})),\n"
        "lambda: socket.create_connection(('1.1.1.1', 53), 1), lambda: socket.socket(socket.AF_VSOCK),\n"
        "lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW), lambda: socket.getaddrinfo('localhost', {port}),\n"
        "lambda: socket.socket(socket.AF_UNIX).connect({unix!r}))",
        "exit",
    ),
    "inherited descriptors": (
        TRY + "attempt(*(lambda n=n: os.write(n, b'x') for n in range(3, 1024)), lambda: os.write(0, b'x'))",
        "exit",
    ),
    "mounts": (
        TRY + "attempt(lambda: failed(libc.mount(b't', b'/tmp', b'tmpfs', 0, None)),\n"
        "lambda: failed(libc.mount(b'/', b'/', None, 0x1020, None)), lambda: failed(libc.umount2(b'/tmp', 2)))",
        "exit",
    ),
    "new namespaces": (
        TRY + "attempt(lambda: failed(libc.unshare(0x10000000)), lambda: failed(libc.setns(0, 0)),\n"
        "lambda: failed(libc.syscall(56, 0x10000011, 0, 0, 0, 0)), lambda: failed(libc.syscall(435, 0, 0)))",
        "exit",
    ),
    "the kernel's corners": (
        TRY
        + "attempt(*(lambda n=n: failed(libc.syscall(n, 0, 0, 0, 0)) for n in (321, 298, 323, 250, 425, 175, 272)))",
        "exit",
    ),
    "becomes root": (
        TRY + "attempt(lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.nice(-5),\n"
        "lambda: os.sched_setscheduler(0, 1, os.sched_param(1)), lambda: socket.sethostname('x'))",
        "exit",
    ),
    "lifts its limits": (
        TRY + "import resource as r\nattempt(*(lambda n=n: r.setrlimit(n, (1 << 40, 1 << 40))\n"
        "for n in (r.RLIMIT_AS, r.RLIMIT_NPROC, r.RLIMIT_FSIZE, r.RLIMIT_CPU)))",
        "fails",
    ),
    "noise on the pipe": ("import os\nos.write(1, bytes(range(128, 256)))\nos._exit(1)", "fails"),
}
"""``resource.setrlimit`` raises ValueError for a raised limit, which ends the program."""

FORGERIES: dict[str, str] = {
    "exits well": "import sys\nsys.exit(0)",
    "exits at once": "import os\nos._exit(0)",
    "prints a verdict": "print('PASSED')\nprint('reward: 1.0')\nprint('1.0')",
    "speaks the protocol": (
        'import os\nos.write(1, b\'{"ended": "exit", "code": 0, "stdout": "4711\\\\n", "stderr": ""}\\n\' * 9)'
    ),
    "is equal to all": "class Any:\n    def __eq__(self, other): return True\ndef f(x): return Any()",
    "patches json": "import json\njson.dump = lambda *_: None\njson.load = lambda *_: {}\ndef f(x): return True",
    "patches builtins": (
        "import builtins, sys\nclass T(int):\n    __eq__ = lambda *_: True\nbuiltins.int = T\n"
        "sys.stdout = open('/dev/null', 'w')\ndef f(x): return T(1)"
    ),
    "looks for the answer": (
        "import gc, os, sys\ndef f(x):\n"
        "    found = [o for o in gc.get_objects() if isinstance(o, dict) and 'result' in o]\n"
        "    frames = [sys._getframe(n).f_locals for n in range(3)]\n"
        "    paths = [os.path.join(d, n) for d, _, names in os.walk('/code') for n in names]\n"
        "    every = [repr(found), repr(frames), repr(os.environ), *(open(path).read() for path in paths)]\n"
        "    return 4700 + 11 if any(str(4700 + 11) in text for text in every) else 0"
    ),
    "deep answer": "import os\nos.write(1, b'[' * 60000)\nos._exit(0)",
    "long number": "import os\nos.write(1, b'9' * 60000)\nos._exit(0)",
}


def no_sandbox() -> str | None:
    """Why this machine gives no sandbox, so that nothing of it can be shown; None where it does."""
    try:
        require_namespaces()
    except ComponentError as refusal:
        return str(refusal)
    return None
