"""One rank of a training world: runs the trainers of a job file in turn; rank 0 writes what they answered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.components.megatron.helpers import ROOT, random_samples, show_later


def run(jobs: dict[str, Any], rank: int) -> dict[str, Any]:
    """Each job: settings of a trainer and how many train calls. Metrics by job.

    Beside ``out``: checkpoints before and after them, and with ``gradients`` the first step's as safetensors.
    """
    from components.megatron.trainer import MegatronTrainer

    answers = {}
    for name, job in jobs.items():
        trainer = MegatronTrainer(**job["settings"], rank=rank)
        try:
            trainer.start({})
            trainer.save_hf(job["out"] + "-before")
            if job.get("gradients"):
                save_gradients(trainer, job["out"] + "-gradients.safetensors")
            answers[name] = [trainer.train(step, batch(job["settings"]["family"])) for step in range(job["steps"])]
            trainer.save_hf(job["out"] + "-after")
        finally:
            trainer.stop()
    return answers


def batch(family: str) -> list[Any]:
    """Samples of a step, some with images in their responses too where the model has them."""
    samples = random_samples(family)
    return show_later(samples) if family == "glm_omni" else samples


def save_gradients(trainer: Any, file: str) -> None:
    """The first step's gradients, by Hugging Face name, whole: they map as the weights do."""
    import torch
    from safetensors.torch import save_file

    from components.megatron.training import _cut

    parts, samples = trainer._ready(), batch(trainer.family)
    parts.optimizer.zero_grad()
    parts.stepper.gradients(_cut(parts, 0, samples, 1)[0])
    weights = dict(parts.weights.tensors)
    parts.weights.tensors = {
        name: getattr(weight, "main_grad", torch.zeros(weight.shape)) for name, weight in weights.items()
    }
    gradients = {name: value.clone() for name, value in parts.weights.export(encoders=False)}
    parts.weights.tensors = weights
    parts.optimizer.zero_grad()
    if trainer.rank == 0:
        save_file(gradients, file)


def run_world(folder: Path, jobs: dict[str, Any], ranks: int) -> dict[str, Any]:
    """Run jobs in so many processes; metrics by job."""
    file = folder / f"jobs-{ranks}.json"
    file.write_text(json.dumps(jobs))
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.components.megatron.worker", str(file)]
    world = [subprocess.Popen([*command, str(rank)], cwd=ROOT, env=env) for rank in range(ranks)]
    try:
        assert [process.wait(timeout=180) for process in world] == [0] * ranks
    finally:
        for process in world:
            process.kill()
    answers: dict[str, Any] = json.loads(file.with_suffix(".answers").read_text())
    return answers


def main(jobs_file: str, rank: int) -> None:
    """Run the jobs of a file as one rank, each on a GPU of its own if they are for GPUs."""
    jobs = json.loads(Path(jobs_file).read_text())
    if any(job["settings"].get("device") == "cuda" for job in jobs.values()):
        os.environ["CUDA_VISIBLE_DEVICES"] = str(rank)
    answers = run(jobs, rank)
    if rank == 0:
        Path(jobs_file).with_suffix(".answers").write_text(json.dumps(answers))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
