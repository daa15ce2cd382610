"""Draws docs/learning_curve.png from run folders: ``python docs/learning_curve.py OUT RUN_DIR...``"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def read(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl of one run folder."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def main(out: Path, runs: list[Path]) -> None:
    """Held-out score (points joined) over training reward (thin line), one colour a run."""
    figure, axes = plt.subplots(figsize=(8, 4.2), dpi=120)
    for number, run in enumerate(runs):
        lines, colour = read(run), f"C{number}"
        plan = json.loads((run / "plan.json").read_text())
        seed = next(actor["args"]["seed"] for actor in plan["actors"] if actor["kind"] == "rollout")
        trained = [line for line in lines if "rollout/reward" in line]
        axes.plot(
            [line["step"] for line in trained], [line["rollout/reward"] for line in trained], colour, lw=0.8, alpha=0.35
        )
        name = next(key for key in lines[0] if key.startswith("eval/") and not key.endswith("/greedy"))
        scored = [line for line in lines if name in line]
        label = f"{plan['name']}, seed {seed}: held-out score"
        axes.plot([line["step"] for line in scored], [line[name] for line in scored], f"{colour}o-", label=label)
    axes.set(xlabel="GRPO step", ylabel="score (thin: training reward)", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(run) for run in sys.argv[2:]])
