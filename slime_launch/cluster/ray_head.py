"""A one-machine Ray cluster on the loopback interface; run as a script under a guard, which ends it.

``ray start`` and ``ray.init`` both replace 127.0.0.1 by the LAN address and open a monitor on every interface, hence
the Node made here. Prints the cluster's address once it is up.
"""

from __future__ import annotations

import argparse
import signal

from ray._private.node import Node
from ray._private.parameter import RayParams


def main() -> None:
    """Start the head node and stay until ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--num-cpus", type=float, required=True)
    parser.add_argument("--num-gpus", type=float, required=True)
    parser.add_argument("--object-store-bytes", type=int, required=True)
    parser.add_argument("--temp-dir", required=True)
    args = parser.parse_args()
    params = RayParams(
        node_ip_address="127.0.0.1",
        gcs_server_port=args.port,
        num_cpus=args.num_cpus,
        num_gpus=args.num_gpus,
        object_store_memory=args.object_store_bytes,
        temp_dir=args.temp_dir,
        include_dashboard=False,
        include_log_monitor=False,
        no_monitor=True,
        ray_client_server_port=None,
        dashboard_host="127.0.0.1",
    )
    node = Node(params, head=True, shutdown_at_exit=False, spawn_reaper=False)
    print(f"ready {node.gcs_address}", flush=True)
    signal.sigwait([signal.SIGTERM])


if __name__ == "__main__":
    main()
