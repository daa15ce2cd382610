"""One rank of a training world that does what a script says, checkpoints included; ``python -m`` runs it as a process.

A job is the settings of a trainer and a script, a list of actions: ["train", step], ["save", run folder, step],
["finish", run folder, step], ["load", checkpoint folder], ["weights", checkpoint folder], ["hf", folder].
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slime_launch.checkpoints import Checkpoints, RunState
from tests.components.megatron.helpers import ROOT, random_samples

Script = Sequence[Sequence[Any]]
KEPT = 2


def recorded(family: str, step: int) -> list[Any]:
    """The samples of one step, always the same."""
    return random_samples(family, groups=2 + step % 2, seed=step)


def act(trainer: Any, script: Script) -> list[Any]:
    """What each action answered; files are committed by rank 0, as the driver does."""
    answers: list[Any] = []
    for name, *args in script:
        if name == "train":
            answers.append(trainer.train(args[0], recorded(trainer.family_name, args[0])))
        elif name == "save":
            folder = Path(args[0], "checkpoints", f".step_{args[1]}.new")
            if trainer.rank == 0:
                Checkpoints(Path(args[0]), KEPT).begin(args[1])
            trainer.together()
            answers.append(trainer.save(str(folder)))
        elif name == "finish":
            files = trainer.finish_save(wait=True)
            if trainer.rank == 0:
                Checkpoints(Path(args[0]), KEPT).commit(RunState(step=args[1], seed=0), files)
            trainer.together()
            answers.append(sorted(files))
        elif name in ("load", "weights"):
            answers.append(asdict(trainer.load(args[0], weights_only=name == "weights")))
        elif name == "hf":
            answers.append(trainer.save_hf(args[0]))
        else:
            raise ValueError(name)
    return answers


def run(job: Mapping[str, Any], rank: int) -> list[Any]:
    """Start the job's trainer, run its script, stop it."""
    from components.megatron.trainer import MegatronTrainer

    class Acting(MegatronTrainer):
        """Knows its family's name, and can wait for the other ranks."""

        family_name = job["settings"]["family"]

        def together(self) -> None:
            import torch.distributed as dist

            dist.barrier()

    trainer = Acting(**job["settings"], rank=rank)
    try:
        trainer.start({})
        return act(trainer, job["script"])
    finally:
        trainer.stop()


def start(file: Path, job: Mapping[str, Any], **env: str) -> list[subprocess.Popen[bytes]]:
    """A process for every rank of the job's world; rank 0 writes the answers beside ``file``."""
    file.write_text(json.dumps(job))
    command = [sys.executable, "-W", "ignore", "-m", "tests.components.megatron.actions", str(file)]
    everything = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | env
    ranks = range(job["settings"].get("world_size", 1))
    return [subprocess.Popen([*command, str(rank)], cwd=ROOT, env=everything) for rank in ranks]


def finished(file: Path, job: Mapping[str, Any]) -> list[Any]:
    """Run a job in processes of its own; its answers."""
    world = start(file, job)
    try:
        assert [process.wait(timeout=180) for process in world] == [0] * len(world)
    finally:
        for process in world:
            process.kill()
    answers: list[Any] = json.loads(file.with_suffix(".answers").read_text())
    return answers


if __name__ == "__main__":
    jobs_file, number = Path(sys.argv[1]), int(sys.argv[2])
    result = run(json.loads(jobs_file.read_text()), number)
    if number == 0:
        jobs_file.with_suffix(".answers").write_text(json.dumps(result))
