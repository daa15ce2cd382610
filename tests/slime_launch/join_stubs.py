"""A launcher in small: joins a cluster, starts a plan of stubs, says where they are, leaves once told. A script."""

import json
import os
import sys
from pathlib import Path

from slime_launch import signals
from slime_launch.cluster.backend import request
from slime_launch.plan import read_plan
from slime_launch.targets import ALLOW_ENV, instantiate
from tests.slime_launch.clusters import running, where

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    plan = read_plan(folder / "plan.json")
    os.environ[ALLOW_ENV] = "tests"
    asked = request([plan], store_mb=80, allow_targets=["tests"], log=folder / "ray.log")
    with signals.listening(), instantiate(plan.cluster.backend).connect(asked), running(plan, folder) as (seats, fleet):
        nodes = [[node.node, node.address, list(node.gpus)] for node in seats.nodes]
        print(json.dumps({"nodes": nodes, "seen": where(fleet)}), flush=True)
        sys.stdin.readline()
