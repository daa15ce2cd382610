"""Rules about the machines: GPUs by node, memory, CPU and ports."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from slime_launch.checks.facts import Facts, PlanRule, Rule
from slime_launch.errors import Problem
from slime_launch.machine import port_is_free
from slime_launch.placement import colocated, group_problems, world_size
from slime_launch.plan import Actor, LaunchPlan
from slime_launch.schema.build import build
from slime_launch.sizes import CPU_PROCESS_BYTES
from slime_launch.targets import resolve


def device_is_there(f: Facts) -> Iterator[Problem]:
    """CUDA needs GPUs: those that the config declares, or this machine's."""
    if f.config.cluster.device == "cuda" and not f.gpus_per_node:
        mend = "use cluster.device=auto, set CUDA_VISIBLE_DEVICES, or plan for others with cluster.gpus_per_node=8"
        yield Problem("cluster.device", "cuda", "this machine shows no GPU", mend)
    declared = f.config.cluster.gpus_per_node or 0
    if f.config.mode == "run" and f.config.cluster.loopback and f.device == "cuda" and declared > f.machine.gpus:
        reason = f"this machine has {f.machine.gpus}: {declared - f.machine.gpus} are missing"
        mend = "use cluster=ray on a cluster that has them, or mode=plan to plan for it"
        yield Problem("cluster.gpus_per_node", declared, reason, mend)
    if f.config.cluster.loopback and f.config.cluster.num_nodes > 1 and f.config.mode == "run":
        mend = "use cluster=ray, slurm or kuberay, or mode=plan to plan for it"
        yield Problem("cluster.num_nodes", f.config.cluster.num_nodes, "this cluster is one machine", mend)


def backend_takes_its_keys(f: Facts) -> Iterator[Problem]:
    """The keys beside ``_target_`` of a backend of ours are known, and of the right type."""
    node = f.config.cluster.backend
    target = node.get("_target_", "")
    found = resolve(target) if target.startswith("slime_launch.") else None
    if dataclasses.is_dataclass(found) and isinstance(found, type):
        rest = {key: value for key, value in node.items() if key != "_target_"}
        yield from build(found, rest, "cluster.backend")[1]


def remote_gpus_are_given(f: Facts) -> Iterator[Problem]:
    """Machines that are not this one are not asked while planning, so the config says what they have."""
    cluster = f.config.cluster
    if not cluster.loopback and cluster.gpus_per_node is None and cluster.device != "cpu":
        mend = "give the GPUs of each node, as in cluster.gpus_per_node=8, or set cluster.device=cpu"
        yield Problem("cluster.gpus_per_node", None, "the run goes onto other machines than this one", mend)


def groups_divide(f: Facts) -> Iterator[Problem]:
    """Counts of each group fit together, and onto GPUs and nodes."""
    for name, group in f.groups.items():
        if group.urls is None:
            yield from group_problems(name, group, f.gpus_per_node)


def trainer_divides(f: Facts) -> Iterator[Problem]:
    """Tensor-parallel ranks stay on one node."""
    tp, per_node = f.config.trainer.parallel.tp, f.gpus_per_node
    if per_node and per_node % tp:
        reason = f"a node has {per_node} GPUs, and tensor-parallel ranks must sit on one node"
        yield Problem("trainer.parallel.tp", tp, reason, f"give a divisor of {per_node}")


def gpus_suffice(f: Facts) -> Iterator[Problem]:
    """The nodes have the GPUs that the plan takes; a deficit says how many are missing, and where."""
    if not f.gpus_per_node:
        return
    nodes, needed = f.config.cluster.num_nodes, f.placement.gpus_by_node()
    missing = {node: count for node, count in needed.items() if node >= nodes}
    if missing:
        there = nodes * f.gpus_per_node
        where = ", ".join(f"node {node}: {count}" for node, count in list(missing.items())[:8])
        where += f" and {len(missing) - 8} more nodes" if len(missing) > 8 else ""
        reason = (
            f"the trainer takes {world_size(f.config)} GPUs and the plan {sum(needed.values())}, "
            f"{nodes} nodes of {f.gpus_per_node} have {there}: {sum(missing.values())} are missing ({where})"
        )
        mend = "add nodes, lower the parallel sizes or num_engines, or set colocated=true on engine groups"
        yield Problem("cluster.num_nodes", nodes, reason, mend)


def colocated_groups_fit(f: Facts) -> Iterator[Problem]:
    """A colocated engine is not larger than the trainer whose GPUs it shares."""
    for name, group in f.groups.items():
        for engine in f.placement.engines.get(name, ()) if colocated(f.config, group) else ():
            size = sum(len(seat.gpus) for seat in engine)
            if size > world_size(f.config):
                reason = f"an engine of {size} GPUs shares those of a trainer that has {world_size(f.config)}"
                key = f"rollout.topology.groups.{name}.colocated"
                yield Problem(key, True, reason, "set it to false, or lower tp x pp x dp")
                break


def threads_fit(f: Facts) -> Iterator[Problem]:
    """No process asks for more CPU threads than a machine has."""
    cores, config = f.machine.cores, f.config
    elsewhere = config.mode == "plan" and config.cluster.gpus_per_node is not None
    if elsewhere or not config.cluster.loopback:
        return
    for key, threads in {
        "trainer.threads": config.trainer.threads, "rollout.server_threads": config.rollout.server_threads
    }.items():  # fmt: skip
        if threads > cores:
            yield Problem(key, threads, f"this machine has {cores} cores", f"give at most {cores}")


def memory_suffices(f: Facts, plan: LaunchPlan) -> Iterator[Problem]:
    """What sits on one GPU, or on this machine, fits into its memory by the plan's estimate."""
    if plan.platform == "cuda":
        yield from _gpu_memory(f, plan)
    elif plan.cluster.loopback and not (f.config.mode == "plan" and f.config.cluster.memory_gb is not None):
        limit = f.config.cluster.memory_gb or f.machine.memory_gb
        needed = {"launcher": CPU_PROCESS_BYTES["launcher"] / 2**30}
        for actor in plan.actors:
            if actor.kind != "checkpoint":  # gone before the rest is up
                needed[actor.group] = needed.get(actor.group, 0.0) + _gigabytes(actor)
        if sum(needed.values()) > limit:
            mend = "lower num_engines, max_total_tokens or micro_batch_size, or take a machine with more"
            reason = f"the plan takes about {_sum(needed)}"
            yield Problem("cluster.memory_gb", f"{limit:.1f}", reason, mend)


def _gpu_memory(f: Facts, plan: LaunchPlan) -> Iterator[Problem]:
    tenants: dict[tuple[int, int], dict[str, float]] = {}
    for actor in plan.actors:
        for gpu in actor.gpus:
            needed = tenants.setdefault((actor.node, gpu), {})
            needed[actor.group] = needed.get(actor.group, 0.0) + _gigabytes(actor)
    limit = f.config.cluster.gpu_memory_gb
    fullest = max(tenants, key=lambda seat: sum(tenants[seat].values()), default=None)
    if fullest is not None and sum(tenants[fullest].values()) > limit:
        reason = f"node {fullest[0]} gpu {fullest[1]} takes about {_sum(tenants[fullest])}"
        mend = "raise the parallel sizes, or lower micro_batch_size, max_new_tokens or mem_fraction_static"
        yield Problem("cluster.gpu_memory_gb", limit, reason, mend)


def _gigabytes(actor: Actor) -> float:
    return sum(actor.memory_mb.values()) / 1024


def _sum(needed: dict[str, float]) -> str:
    """``3.1 GB (trainer 2.0 + engine 1.1)``, the largest first."""
    addends = sorted(needed.items(), key=lambda item: -item[1])
    return (
        f"{sum(needed.values()):.1f} GB ({' + '.join(f'{name} {size:.1f}' for name, size in addends if size >= 0.05)})"
    )


def ports_are_free(f: Facts, plan: LaunchPlan) -> Iterator[Problem]:
    """A fixed block of ports is free."""
    base = f.config.cluster.base_port
    last = base + plan.cluster.num_ports - 1
    if base and (base < 1024 or last > 65535):
        mend = "give 1024 or more, or 0 for a free block"
        yield Problem("cluster.base_port", base, f"ports {base} to {last} are not all usable", mend)
        return
    taken = [port for port in range(base, last + 1) if not port_is_free(port)] if base and plan.cluster.loopback else []
    if taken:
        reason = f"taken: {', '.join(map(str, taken))}"
        yield Problem("cluster.base_port", base, reason, "give another port, or 0 for a free block")


RULES: tuple[Rule, ...] = (
    device_is_there, backend_takes_its_keys, remote_gpus_are_given, groups_divide, trainer_divides,
    gpus_suffice, colocated_groups_fit, threads_fit,
)  # fmt: skip
PLAN_RULES: tuple[PlanRule, ...] = (memory_suffices, ports_are_free)
