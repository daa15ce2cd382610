"""cluster=slurm and cluster=kuberay: what they write, and that it is the same run."""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from slime_launch.cluster.backend import Backend, Scheduler, Submission
from slime_launch.cluster.kuberay import KubeRay
from slime_launch.cluster.local import LocalCluster
from slime_launch.cluster.slurm import Slurm
from slime_launch.cluster.submission import hydra_string, inner_command, plain_overrides
from slime_launch.errors import ComponentError, ConfigError
from slime_launch.machine import free_ports
from slime_launch.plan import LaunchPlan
from tests.runs import MARK
from tests.slime_launch.commands import Ran, slime_launch
from tests.slime_launch.plans import plan_for

WIDE = (
    "+experiment=qwen3_grpo", "cluster.num_nodes=2", "cluster.gpus_per_node=8", "rollout.topology.colocated=false",
    "rollout.topology.groups.engine.num_engines=8", "trainer.parallel.dp=8",
)  # fmt: skip
KUBE = ("cluster=kuberay", "cluster.backend.image=repo/slime:1", "cluster.backend.claim=data")
NASTY = "name with 'quotes', $HOME and `ticks`"


def submission(plan: LaunchPlan, folder: Path, *overrides: str) -> Submission:
    console = Console(file=io.StringIO())
    return Submission(plan=plan, overrides=overrides, config_dir=None, run_dir=folder, console=console)


def shown(job: Submission) -> str:
    assert isinstance(job.console.file, io.StringIO)
    return job.console.file.getvalue()


def command_of(script: str) -> list[str]:
    # "\n" alone: other characters end a line for str.splitlines, not for bash
    [line] = [line for line in script.split("\n") if line.startswith("slime-launch ")]
    return shlex.split(line.removesuffix("&"))


def syntax(script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_a_backend_is_one_or_the_other() -> None:
    assert isinstance(LocalCluster(), Backend) and not isinstance(LocalCluster(), Scheduler)
    assert isinstance(Slurm(), Scheduler) and not isinstance(Slurm(), Backend)
    assert isinstance(KubeRay(), Scheduler) and not isinstance(KubeRay(), Backend)


def test_the_script_asks_for_what_the_plan_takes(tmp_path: Path) -> None:
    plan = plan_for(*WIDE, "cluster=slurm")
    backend = Slurm(submit=False, partition="gpu", account="lab", time="1-00:00:00", options=["--qos=high"])
    script = backend.script(submission(plan, tmp_path))
    syntax(script)
    options = {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")}
    assert {
        "--nodes=2", "--gpus-per-node=8", "--ntasks-per-node=1", "--partition=gpu", "--account=lab", "--qos=high",
        "--time=1-00:00:00", "--signal=B:TERM@120", f"--job-name={plan.name}",
    } <= options  # fmt: skip
    assert script.count("ray start --head") == 1 and "--nodes=1 --ntasks=1 --exclude=" in script


def test_one_node_starts_no_workers_and_cpu_asks_for_no_gpus(tmp_path: Path) -> None:
    plan = plan_for("+experiment=qwen3_grpo", "cluster=slurm", "cluster.device=cpu")
    script = Slurm(submit=False, interface="ib0", setup=["module load cuda"]).script(submission(plan, tmp_path))
    syntax(script)
    assert "--exclude" not in script and "gpus-per-node" not in script
    assert "addr show dev ib0" in script and "\nmodule load cuda\n" in script


@cache
def small_plan() -> LaunchPlan:
    return plan_for("+experiment=qwen3_grpo", "cluster=slurm", "cluster.device=cpu")


@settings(deadline=None, max_examples=50)  # each asks bash
@given(st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), max_size=40), st.sampled_from("abc"))
def test_whatever_stands_in_an_override_stays_one_word(text: str, key: str) -> None:
    override = f"data.{key}={text}"
    script = Slurm(submit=False).script(submission(small_plan(), Path("/data/run"), override))
    syntax(script)
    assert override in command_of(script)


def test_a_run_folder_of_any_name(tmp_path: Path) -> None:
    plan = plan_for("+experiment=qwen3_grpo", "cluster=slurm", "cluster.device=cpu")
    script = Slurm(submit=False).script(submission(plan, tmp_path / NASTY))
    syntax(script)
    lines = [line for line in script.splitlines() if line.startswith("run_dir=")]
    said = subprocess.run(["bash", "-c", f'{lines[0]}; printf %s "$run_dir"'], capture_output=True, text=True)
    assert said.stdout == str(tmp_path / NASTY)
    assert command_of(script)[-1] == f"hydra.run.dir={hydra_string(str(tmp_path / NASTY))}"


def test_the_inner_command_gives_the_same_plan(tmp_path: Path) -> None:
    overrides = [*WIDE, "++cluster.backend.partition=gpu", "cluster=slurm", "mode=run", "hydra.run.dir=x"]
    outer = plan_for(*overrides[:-2])
    command = inner_command(submission(outer, tmp_path, *overrides), tmp_path)
    assert command[0] == "slime-launch"
    inner = plan_for(*[line for line in command[1:] if not line.startswith("hydra.")])
    assert inner.cluster.backend == {"_target_": "slime_launch.cluster.join.RayCluster"}
    assert inner.actors == outer.actors and inner.placeholders == outer.placeholders


def test_only_what_is_about_the_place_is_dropped() -> None:
    kept = ["+experiment=x", "cluster.num_nodes=2", "modest=1", "seed=1"]
    assert plain_overrides([*kept, "cluster=slurm", "++cluster.backend.time=1", "mode=run", "hydra.run.dir=a"]) == kept


def test_no_secret_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "s3ntinel")
    args = ("tracking.trackers.x.key=${oc.env:WANDB_API_KEY}",)
    plan = plan_for(*WIDE, "cluster=slurm")
    assert Slurm(submit=False).submit_job(submission(plan, tmp_path, *args)) == 0
    assert KubeRay(image="i", claim="c", env_secrets=["keys"]).submit_job(submission(plan, tmp_path, *args)) == 0
    for file in ("job.sbatch", "rayjob.yaml"):
        text = (tmp_path / file).read_text()
        assert "s3ntinel" not in text and "WANDB_API_KEY" in text
        assert (tmp_path / file).stat().st_mode & 0o077 == 0


def test_sbatch_is_called_and_its_refusal_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "bin"
    plan = plan_for(*WIDE, "cluster=slurm")
    with pytest.raises(ConfigError, match="no sbatch on this machine"):
        monkeypatch.setenv("PATH", str(tools))
        Slurm().submit_job(submission(plan, tmp_path))
    assert not (tmp_path / "job.sbatch").exists()
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    tool(tools / "sbatch", 'echo "$@" > "$(dirname "$0")/asked"; echo 4711')
    job = submission(plan, tmp_path)
    assert Slurm().submit_job(job) == 0
    assert (tools / "asked").read_text().split() == ["--parsable", str(tmp_path / "job.sbatch")]
    assert "submitted as job 4711" in shown(job) and "#SBATCH --nodes=2" in shown(job)
    tool(tools / "sbatch", "echo no such partition >&2; exit 1")
    with pytest.raises(ComponentError, match="no such partition"):
        Slurm().submit_job(submission(plan, tmp_path))


def tool(file: Path, body: str) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"#!/bin/bash\n{body}\n")
    file.chmod(0o755)


def manifest(folder: Path, **fields: Any) -> dict[str, Any]:
    plan = plan_for(*WIDE, *KUBE)
    job = submission(plan, folder / "2026-01-01_qwen", *WIDE)
    assert KubeRay(image="repo/slime:1", claim="data", **fields).submit_job(job) == 0
    return yaml.safe_load((job.run_dir / "rayjob.yaml").read_text())  # type: ignore[no-any-return]


def test_the_rayjob_has_a_pod_for_each_node(tmp_path: Path) -> None:
    made = manifest(tmp_path, namespace="lab", env_secrets=["keys"], node_selector={"gpu": "h100"})
    assert (made["apiVersion"], made["kind"], made["metadata"]["namespace"]) == ("ray.io/v1", "RayJob", "lab")
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", made["metadata"]["name"])
    spec = made["spec"]
    assert spec["shutdownAfterJobFinishes"] is True and spec["backoffLimit"] == 0
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    [workers] = cluster["workerGroupSpecs"]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"] == 2
    pod = workers["template"]["spec"]
    [container] = pod["containers"]
    assert container["image"] == "repo/slime:1"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]
    assert pod["nodeSelector"] == {"gpu": "h100"}
    assert {"name": "shared", "persistentVolumeClaim": {"claimName": "data"}} in pod["volumes"]
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0" == head["rayStartParams"]["num-gpus"]
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]
    words = shlex.split(spec["entrypoint"])
    assert words[0] == "slime-launch" and "cluster=ray" in words and words[-1].startswith("hydra.run.dir='/shared/")


def test_kubectl_is_called_only_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "bin"
    tool(tools / "kubectl", 'echo "$@" >> "$(dirname "$0")/asked"; echo created')
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    manifest(tmp_path)
    assert not (tools / "asked").exists()
    manifest(tmp_path, apply=True)
    assert (tools / "asked").read_text().startswith("apply -f ")


def refused(folder: Path, *args: str) -> Ran:
    ran = slime_launch("+experiment=qwen3_grpo", *args, "hydra.run.dir=run", cwd=folder)
    assert ran.code == 2, ran.out
    return ran


def test_bad_keys_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    slurm = refused(tmp_path, "cluster=slurm", "cluster.backend.partitoin=x", "cluster.backend.time=3 h")
    assert "cluster.backend.partitoin=x: unknown key; did you mean cluster.backend.partition?" in slurm.err
    assert "cluster.backend.time=3 h" in slurm.err
    assert "cluster.gpus_per_node=None: the run goes onto other machines than this one" in slurm.err
    kube = refused(tmp_path, "cluster=kuberay", "cluster.gpus_per_node=8")
    assert "cluster.backend.image" in kube.err and "cluster.backend.claim" in kube.err
    assert "cluster.backend.foo" in refused(tmp_path, "cluster.backend.foo=1").err


@pytest.fixture
def allocation(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Slurm's commands as they look from inside a job of one node, on the loopback interface."""
    tools = tmp_path / "bin"
    tool(tools / "srun", 'while [[ "$1" == --* ]]; do shift; done; exec "$@"')
    tool(tools / "scontrol", 'echo "$3"')
    tool(tools / "hostname", "echo 127.0.0.1")
    yield os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "here", MARK: str(tmp_path),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_TMPDIR": "/tmp",
    }  # fmt: skip


@pytest.mark.servers
@pytest.mark.full
def test_the_script_trains_for_real(tmp_path: Path, allocation: dict[str, str]) -> None:
    from tests.runs import read_jsonl

    args = [
        "+experiment=qwen3_grpo", "cluster=slurm", "cluster.backend.submit=false", "cluster.device=cpu",
        f"cluster.backend.ray_port={free_ports(1)[0]}", "trainer.num_steps=1", "data.eval_size=8",
        "rollout.num_prompts=2", "driver.eval_interval=0",
    ]  # fmt: skip
    ran = slime_launch(*args, f"hydra.run.dir={tmp_path / 'run'}", cwd=tmp_path)
    assert ran.code == 0, ran.err
    script = tmp_path / "run" / "job.sbatch"
    done = subprocess.run(["bash", str(script)], env=allocation, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["step"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")] == [0, 1]
    assert not list((tmp_path / "run").glob("ray-token*"))
    left = [
        entry
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and int(entry.name) != os.getpid() and marked(entry, str(tmp_path))
    ]
    assert not left


def marked(process: Path, mark: str) -> bool:
    try:
        return f"{MARK}={mark}".encode() in (process / "environ").read_bytes()
    except OSError:
        return False
