"""Slurm: a batch script that starts Ray on the job's nodes and runs the same command on the first of them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Annotated

from msgspec import Meta

from slime_launch.cluster.backend import Submission
from slime_launch.cluster.needs import node_needs
from slime_launch.cluster.submission import inner_command, write_private
from slime_launch.errors import ComponentError, ConfigError, Problem
from slime_launch.schema.fields import Count, Natural, about

Word = Annotated[str, Meta(pattern=r"^[^\s\"'`$\\]+$")]
_SPARE_CPUS = 2  # for Ray itself

_SCRIPT = Template(r"""#!/bin/bash
$options
# Starts Ray on every node of the job, with a token that only this job knows, and runs slime-launch on the first one.
set -euo pipefail
umask 077

cd $folder
export PATH=$bin:"$$PATH"
$setup
run_dir=$run_dir
mkdir -p "$$run_dir"
token=$$run_dir/ray-token-$$SLURM_JOB_ID
od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$$token"
unset RAY_AUTH_TOKEN
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$$token" RAY_USAGE_STATS_ENABLED=0
export SRUN_CPUS_PER_TASK=$cpus  # steps do not take it from the job

head=$$(scontrol show hostnames "$$SLURM_JOB_NODELIST" | head -n 1)
address=$$($address)
export RAY_ADDRESS="$$address:$port"

steps=()
finish() {
  if [ "$${#steps[@]}" -gt 0 ]; then
    kill "$${steps[@]}" 2> /dev/null || true
  fi
  wait || true
  rm -f "$$token"
}
trap finish EXIT

srun --nodes=1 --ntasks=1 --nodelist="$$head" --overlap$srun \
  ray start --head --node-ip-address="$$address" --port=$port \
  --num-cpus=$cpus --num-gpus=$gpus --include-dashboard=false --disable-usage-stats --block &
steps+=("$$!")

tries=0
until ray health-check --address "$$RAY_ADDRESS" > /dev/null 2>&1; do
  tries=$$((tries + 1))
  if [ "$$tries" -ge 60 ]; then
    echo "Ray's head at $$RAY_ADDRESS did not come up" >&2
    exit 1
  fi
  sleep 2
done
$workers
$command &
launcher=$$!
# a signal before the time limit stops the run in good order
trap 'kill -TERM "$$launcher" 2> /dev/null || true' TERM INT
code=0
wait "$$launcher" || code=$$?
while kill -0 "$$launcher" 2> /dev/null; do
  code=0
  wait "$$launcher" || code=$$?
done
exit "$$code"
""")

_WORKERS = Template(r"""
srun --nodes=$count --ntasks=$count --exclude="$$head" --overlap$srun \
  ray start --address="$$RAY_ADDRESS" --num-cpus=$cpus --num-gpus=$gpus --disable-usage-stats --block &
steps+=("$$!")
""")


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """Scheduler: writes ``job.sbatch`` into the run folder, shows it and submits it.

    All nodes see the run folder and this Python environment at the same path.
    """

    submit: Annotated[bool, about("Submit with sbatch; false only writes and shows the script.")] = True
    partition: Annotated[Word | None, about("sbatch --partition.")] = None
    account: Annotated[Word | None, about("sbatch --account.")] = None
    time: Annotated[Word | None, about("sbatch --time, as in 1-12:00:00.")] = None
    cpus_per_node: Annotated[Count | None, about("CPUs of each node; null: what the plan takes.")] = None
    stop_before_s: Annotated[Natural, about("How long before the time limit the run is told to stop.", "s")] = 120
    ray_port: Annotated[Count, about("Port of Ray's head.")] = 6379
    interface: Annotated[Word | None, about("Network interface of the nodes; null: their first address.")] = None
    options: Annotated[list[Word], about("More sbatch options, as in --qos=high.")] = field(default_factory=list)
    srun_options: Annotated[list[Word], about("More srun options, as in --container-image=...")] = field(
        default_factory=list
    )
    setup: Annotated[list[str], about("Shell lines to run first, as in module load cuda.")] = field(
        default_factory=list
    )

    def submit_job(self, job: Submission) -> int:
        """See Scheduler."""
        if self.submit and shutil.which("sbatch") is None:
            mend = "run this on a login node, or set cluster.backend.submit=false to only write the script"
            raise ConfigError([Problem("cluster.backend.submit", True, "no sbatch on this machine", mend)])
        file, text = job.run_dir / "job.sbatch", self.script(job)
        (job.run_dir / "logs").mkdir(parents=True, exist_ok=True)
        write_private(file, text)
        job.console.print(text, highlight=False, markup=False, soft_wrap=True)
        job.console.print(f"written to {file}", highlight=False, soft_wrap=True)
        if self.submit:
            done = subprocess.run(["sbatch", "--parsable", str(file)], capture_output=True, text=True)
            if done.returncode:
                raise ComponentError(f"sbatch refused {file}: {done.stderr.strip()}")
            job.console.print(f"submitted as job {done.stdout.strip()}", highlight=False)
        return 0

    def script(self, job: Submission) -> str:
        """The batch script."""
        needs = node_needs(job.plan)
        cpus = self.cpus_per_node or max(need.cpus for need in needs) + _SPARE_CPUS
        gpus = max(need.gpus for need in needs)
        srun = "".join(f" {shlex.quote(option)}" for option in self.srun_options)
        shared = {"cpus": cpus, "gpus": gpus, "srun": srun}
        workers = _WORKERS.substitute(shared, count=len(needs) - 1) if len(needs) > 1 else ""
        return _SCRIPT.substitute(
            shared,
            options="\n".join(f"#SBATCH {option}" for option in self._options(job, len(needs), cpus, gpus)),
            folder=shlex.quote(os.getcwd()),
            bin=shlex.quote(str(Path(sys.executable).parent)),
            setup="".join(f"{line}\n" for line in [*_python_path(), *self.setup]),
            run_dir=shlex.quote(str(job.run_dir)),
            address=_own_address(self.interface),
            port=self.ray_port,
            workers=workers,
            command=shlex.join(inner_command(job, job.run_dir)),
        )

    def _options(self, job: Submission, nodes: int, cpus: int, gpus: int) -> list[str]:
        chosen = {"partition": self.partition, "account": self.account, "time": self.time}
        log = str(job.run_dir / "logs").replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')
        return [
            f"--job-name={job.plan.name}", f"--nodes={nodes}", "--ntasks-per-node=1", f"--cpus-per-task={cpus}",
            *([f"--gpus-per-node={gpus}"] if gpus else []), f'--output="{log}/slurm-%j.log"',
            *(f"--{name}={value}" for name, value in chosen.items() if value is not None),
            *([f"--signal=B:TERM@{self.stop_before_s}"] if self.stop_before_s else []), *self.options,
        ]  # fmt: skip


def _python_path() -> list[str]:
    paths = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return [f"export PYTHONPATH={shlex.quote(os.pathsep.join(paths))}"] if paths else []


def _own_address(interface: str | None) -> str:
    """A command that prints the address of the node it runs on."""
    if interface is None:
        return "hostname -I | awk '{print $1}'"
    return f'ip -4 -o addr show dev {shlex.quote(interface)} | awk \'{{sub("/.*", "", $4); print $4; exit}}\''
