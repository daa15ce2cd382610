"""A Ray cluster of our own on this machine: loopback only, token-authenticated, under a guard."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from slime_launch import signals
from slime_launch.errors import ComponentError, DeadlineError
from slime_launch.guard import Guarded, descendants
from slime_launch.paths import ROOT
from slime_launch.targets import ALLOW_ENV

_START_TIMEOUT_S = 60.0
_GRACE_S = 2.0
_MIN_STORE_BYTES = 80 * 2**20


def ray_environment(allow_targets: list[str], token_file: Path) -> dict[str, str]:
    """Environment of Ray's processes and of every actor.

    Loopback, a token, our house first, one OMP thread by default.
    """
    # absolute, since actors work in the run folder
    paths = [str(ROOT), *map(os.path.abspath, filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))]
    return {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONSAFEPATH": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        # without "clusters" Ray keeps 127.0.0.1 instead of looking up a LAN address
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # engines would inherit Ray's 15, and lose to anything else on the machine
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "GLOO_SOCKET_IFNAME": "lo",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        ALLOW_ENV: ",".join(allow_targets),
    }


class LocalCluster:
    """Context manager: Ray's head starts on entry.

    On exit it and every process below it, servers included, are gone.
    """

    def __init__(
        self, *, port: int, num_cpus: float, num_gpus: float, store_mb: int, allow_targets: list[str], log: Path
    ) -> None:
        self._temp = Path(tempfile.mkdtemp(prefix="slime-launch-", dir="/tmp"))  # Ray's socket paths must stay short
        token = self._temp / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self._env = ray_environment(allow_targets, token)
        self._log, self._port = log, port
        store = max(_MIN_STORE_BYTES, store_mb * 2**20)
        self._argv = [
            sys.executable, "-P", str(Path(__file__).with_name("ray_head.py")), f"--port={port}",
            f"--num-cpus={num_cpus}", f"--num-gpus={num_gpus}", f"--object-store-bytes={store}",
            f"--temp-dir={self._temp / 'ray'}",
        ]  # fmt: skip
        self._guarded: Guarded | None = None

    def __enter__(self) -> LocalCluster:
        os.environ.update(self._env)
        try:
            self._guarded = Guarded.start(self._argv, env=os.environ, log=self._log, grace_s=_GRACE_S)
            self._await_head()
            import ray

            try:
                ray.init(
                    address=f"127.0.0.1:{self._port}",
                    log_to_driver=False,
                    logging_level="error",
                    configure_logging=False,
                )
            finally:
                signals.install()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()
        if self._guarded is not None:
            self._guarded.stop()
        shutil.rmtree(self._temp, ignore_errors=True)

    def processes(self) -> list[int]:
        """Process ids of the guard and everything below it."""
        return [self._guarded.pid, *descendants(self._guarded.pid)] if self._guarded else []

    def _await_head(self) -> None:
        assert self._guarded is not None
        deadline = time.monotonic() + _START_TIMEOUT_S
        while "\nready " not in (text := "\n" + self._log.read_text(errors="replace")):
            signals.check()
            if self._guarded.poll() is not None:
                raise ComponentError(f"Ray did not start; log {self._log} ends with:\n{text[-2000:]}")
            if time.monotonic() > deadline:
                raise DeadlineError(f"Ray was not up after {_START_TIMEOUT_S:.0f} s; see {self._log}")
            time.sleep(0.05)
