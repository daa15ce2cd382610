"""How long ``mode=plan`` takes as the plan grows: the default, then 64, 512 and 4,096 GPUs.

    python benchmarks/plan.py [runs]

Whole processes, the console script as a user starts it; the median of the runs. Growth is the ratio of what is above an
empty interpreter's start, so that it says something on a machine that is busy.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SLIME_LAUNCH = str(Path(sys.executable).with_name("slime-launch"))
ENGINE = "rollout.topology.groups.engine"
BIG = ("+experiment=qwen3_32b", "trainer.parallel.tp=8", f"{ENGINE}.tp=4")
SIZES = {
    "default (1 engine, no GPU)": ("+experiment=glm_omni_grpo",),
    "64 GPUs, 8 engines": (*BIG, "cluster.num_nodes=8", "trainer.parallel.pp=4", f"{ENGINE}.num_engines=8"),
    "512 GPUs, 64 engines": (
        *BIG, "cluster.num_nodes=64", "trainer.parallel.pp=8", "trainer.parallel.dp=4", f"{ENGINE}.num_engines=64",
    ),
    "4,096 GPUs, 512 engines": (
        *BIG, "cluster.num_nodes=512", "trainer.parallel.pp=8", "trainer.parallel.dp=32", f"{ENGINE}.num_engines=512",
    ),
}  # fmt: skip


def seconds(command: list[str], runs: int) -> float:
    """Median wall time of a command."""
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def main() -> None:
    """Print one line a size."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    empty = seconds([sys.executable, "-c", "pass"], runs)
    before = None
    with tempfile.TemporaryDirectory() as folder:
        for name, args in SIZES.items():
            took = seconds([SLIME_LAUNCH, *args, "mode=plan", f"hydra.run.dir={folder}/run"], runs)
            grown = "" if before is None else f", {(took - empty) / (before - empty):.2f} x the line above"
            print(f"{name}: {took:.2f} s{grown}", flush=True)
            before = took


if __name__ == "__main__":
    main()
