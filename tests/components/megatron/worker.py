"""One rank of a training world: runs the trainers of a job file in turn; rank 0 writes what they answered."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def run(jobs: dict[str, Any], rank: int) -> dict[str, Any]:
    """Each job: settings of a trainer and how many train calls; saves before and after them. Metrics by job."""
    from components.megatron.trainer import MegatronTrainer
    from tests.components.megatron.helpers import random_samples

    answers = {}
    for name, job in jobs.items():
        trainer = MegatronTrainer(**job["settings"], rank=rank)
        try:
            trainer.start({})
            trainer.save_hf(job["out"] + "-before")
            answers[name] = [
                trainer.train(step, random_samples(job["settings"]["family"])) for step in range(job["steps"])
            ]
            trainer.save_hf(job["out"] + "-after")
        finally:
            trainer.stop()
    return answers


def main(jobs_file: str, rank: int) -> None:
    """Run the jobs of a file as one rank."""
    answers = run(json.loads(Path(jobs_file).read_text()), rank)
    if rank == 0:
        Path(jobs_file).with_suffix(".answers").write_text(json.dumps(answers))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
