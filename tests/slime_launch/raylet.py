"""One more node of a Ray cluster on the loopback interface; a script, since ``ray start`` refuses loopback for it."""

import signal
import sys

from ray._private.node import Node
from ray._private.parameter import RayParams

if __name__ == "__main__":
    address, cpus, gpus = sys.argv[1:]
    params = RayParams(
        gcs_address=address, node_ip_address="127.0.0.1", num_cpus=int(cpus), num_gpus=int(gpus),
        object_store_memory=80 * 2**20, include_log_monitor=False,
    )  # fmt: skip
    Node(params, head=False, shutdown_at_exit=False, spawn_reaper=False)
    print("ready", flush=True)
    signal.sigwait([signal.SIGTERM])
