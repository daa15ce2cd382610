"""KubeRay: a RayJob whose Ray cluster runs the same command."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Annotated, Any

import yaml
from msgspec import Meta

from slime_launch.cluster.backend import Submission
from slime_launch.cluster.needs import node_needs
from slime_launch.cluster.submission import inner_command, write_private
from slime_launch.errors import ComponentError, ConfigError, Problem
from slime_launch.schema.fields import Count, Natural, about

Name = Annotated[str, Meta(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
_LONGEST_NAME = 47  # KubeRay adds suffixes of its own to at most 63
_SPARE_CPUS = 2


@dataclass(frozen=True, kw_only=True)
class KubeRay:
    """Scheduler: writes ``rayjob.yaml`` into the run folder, shows it, and applies it only where asked.

    Needs KubeRay 1.5.1 or later, which makes the cluster's token. One worker pod for each node of the plan; the head
    runs the driver only. The image holds slime-launch and its packages.
    """

    image: Annotated[str | None, about("Container image with slime-launch; required.")] = None
    apply: Annotated[bool, about("Apply with kubectl; false only writes and shows the manifest.")] = False
    namespace: Annotated[Name, about("Namespace of the job.")] = "default"
    claim: Annotated[Name | None, about("PersistentVolumeClaim that all pods mount; required.")] = None
    mount: Annotated[str, Meta(pattern="^/[^:]+$", description="Where the claim is mounted.")] = "/shared"
    cpus_per_node: Annotated[Count | None, about("CPUs of each worker pod; null: what the plan takes.")] = None
    memory_gb: Annotated[Count, about("Memory of each worker pod.", "GB")] = 64
    shm_gb: Annotated[Count, about("Shared memory of each pod, within its memory.", "GB")] = 16
    head_cpus: Annotated[Count, about("CPUs of the head pod.")] = 2
    head_memory_gb: Annotated[Count, about("Memory of the head pod.", "GB")] = 8
    gpu_resource: Annotated[str, about("Kubernetes' name of a GPU.")] = "nvidia.com/gpu"
    service_account: Annotated[Name | None, about("Service account of the pods.")] = None
    env_secrets: Annotated[list[Name], about("Kubernetes Secrets whose entries become environment variables.")] = field(
        default_factory=list
    )
    node_selector: Annotated[dict[str, str], about("Labels of the nodes that workers run on.")] = field(
        default_factory=dict
    )
    keep_s: Annotated[Natural, about("How long the finished job stays.", "s")] = 3600

    def submit_job(self, job: Submission) -> int:
        """See Scheduler."""
        problems = [*self._problems()]
        if problems:
            raise ConfigError(problems)
        file = job.run_dir / "rayjob.yaml"
        text = yaml.safe_dump(self.manifest(job), sort_keys=False)
        write_private(file, text)
        job.console.print(text, highlight=False, markup=False, soft_wrap=True)
        job.console.print(f"written to {file}", highlight=False, soft_wrap=True)
        if self.apply:
            done = subprocess.run(["kubectl", "apply", "-f", str(file)], capture_output=True, text=True)
            if done.returncode:
                raise ComponentError(f"kubectl refused {file}: {done.stderr.strip()}")
            job.console.print(done.stdout.strip(), highlight=False)
        return 0

    def _problems(self) -> list[Problem]:
        found = []
        if self.image is None:
            found.append(Problem("cluster.backend.image", None, "a pod needs an image", "name one with slime-launch"))
        if self.claim is None:
            mend = "name a PersistentVolumeClaim that many pods may write"
            found.append(Problem("cluster.backend.claim", None, "all nodes must see the run folder", mend))
        if self.apply and shutil.which("kubectl") is None:
            mend = "install it, or set cluster.backend.apply=false and apply rayjob.yaml elsewhere"
            found.append(Problem("cluster.backend.apply", True, "no kubectl on this machine", mend))
        return found

    def manifest(self, job: Submission) -> dict[str, Any]:
        """The RayJob, as plain containers."""
        needs = node_needs(job.plan)
        cpus = self.cpus_per_node or max(need.cpus for need in needs) + _SPARE_CPUS
        gpus = max(need.gpus for need in needs)
        name = _job_name(job.run_dir.name)
        command = inner_command(job, f"{self.mount.rstrip('/')}/outputs/{name}")
        workers = {
            "groupName": "nodes", "replicas": len(needs), "minReplicas": len(needs), "maxReplicas": len(needs),
            "rayStartParams": {"num-cpus": str(cpus), "num-gpus": str(gpus)},
            "template": self._pod(cpus, gpus, self.memory_gb, self.node_selector),
        }  # fmt: skip
        head = {
            # nothing of the plan sits on the head
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"},
            "template": self._pod(self.head_cpus, 0, self.head_memory_gb, {}),
        }
        return {
            "apiVersion": "ray.io/v1",
            "kind": "RayJob",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "entrypoint": shlex.join(command),
                "shutdownAfterJobFinishes": True,
                "ttlSecondsAfterFinished": self.keep_s,
                "backoffLimit": 0,
                "rayClusterSpec": {
                    "rayVersion": version("ray"),
                    "authOptions": {"mode": "token"},
                    "headGroupSpec": head,
                    "workerGroupSpecs": [workers],
                },
            },
        }

    def _pod(self, cpus: int, gpus: int, memory_gb: int, selector: dict[str, str]) -> dict[str, Any]:
        amounts: dict[str, Any] = {"cpu": str(cpus), "memory": f"{memory_gb}Gi"}
        amounts |= {self.gpu_resource: gpus} if gpus else {}
        container: dict[str, Any] = {
            "name": "ray",
            "image": self.image,
            "env": [{"name": "XDG_CACHE_HOME", "value": f"{self.mount.rstrip('/')}/.cache"}],
            "envFrom": [{"secretRef": {"name": name}} for name in self.env_secrets],
            "resources": {"requests": amounts, "limits": dict(amounts)},
            "volumeMounts": [
                {"name": "shared", "mountPath": self.mount}, {"name": "shm", "mountPath": "/dev/shm"},
            ],
        }  # fmt: skip
        spec: dict[str, Any] = {
            "containers": [container],
            "volumes": [
                {"name": "shared", "persistentVolumeClaim": {"claimName": self.claim}},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{self.shm_gb}Gi"}},
            ],
        }
        if self.service_account is not None:
            spec["serviceAccountName"] = self.service_account
        if selector:
            spec["nodeSelector"] = dict(selector)
        return {"spec": spec}


def _job_name(text: str) -> str:
    """A run folder's name as a Kubernetes name."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    name = name if name[:1].isalpha() else f"run-{name}"
    return name[:_LONGEST_NAME].strip("-")
