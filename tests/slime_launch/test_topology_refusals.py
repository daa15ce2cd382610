"""Topologies that contradict themselves, or what they stand on, are refused before anything starts."""

from pathlib import Path

import pytest

from tests.slime_launch.commands import check_refusal

GLM, QWEN = "+experiment=glm_omni_grpo", "+experiment=qwen3_grpo"
ON_GPUS = ["cluster.gpus_per_node=8"]
G = "rollout.topology.groups"

BAD: list[tuple[list[str], str]] = [
    # who generates
    ([QWEN, f"{G}.engine.worker_type=placeholder"], "no regular or decode engines of the actor, so nothing generates"),
    ([QWEN, "rollout/topology=pd"], "prefill: SGLang's KV transfer between prefill and decode needs GPUs"),
    (
        [QWEN, f"{G}.engine.worker_type=decode", *ON_GPUS],
        f"error: {G}.engine.worker_type=decode: model actor has no prefill engines; add a group of prefill engines",
    ),
    (
        [QWEN, "rollout/topology=pd", f"++{G}.engine.worker_type=regular", *ON_GPUS],
        f"error: {G}.engine.worker_type=regular: mixed with decode, prefill engines in model actor",
    ),
    # encoders
    (
        [GLM, f"+{G}.engine.overrides.language_only=false"],
        f"error: {G}.encoder.worker_type=encoder: no regular or prefill engine of model actor takes its URL",
    ),
    (
        [GLM, f"+{G}.engine.overrides.encoder_urls=[http://10.0.0.1:1]"],
        f"error: {G}.encoder.worker_type=encoder: no regular or prefill engine of model actor takes its URL",
    ),
    (
        [GLM, "rollout/topology=epd_pd", f"++{G}.prefill.overrides.enable_dp_attention=true", *ON_GPUS],
        f"error: {G}.prefill.overrides.enable_dp_attention=True: a prefill engine behind an encoder hangs",
    ),
    (
        [GLM, f"+{G}.encoder.overrides.encoder_transfer_backend=mooncake"],
        "encoders and engines of model actor differ: {'encoder': 'mooncake', 'engine': 'zmq_to_tokenizer'}; give all",
    ),
    (
        [GLM, f"{G}.engine.num_engines=2", f"+{G}.engine.overrides.encoder_bootstrap_port=8997"],
        f"error: {G}.engine.overrides.encoder_bootstrap_port=8997: 2 engines would open it; leave it out",
    ),
    ([GLM, "model.freeze=['^decoder']"], "the vision encoder (encoders.vision.) would train"),
    # models
    ([QWEN, f"{G}.engine.model=actr"], f"error: {G}.engine.model=actr: no such model; did you mean actor?"),
    (
        [QWEN, "++rollout.topology.models.judge.path=null"],
        "error: rollout.topology.models.judge=judge: no engine group serves it; give a group model: judge",
    ),
    (
        [QWEN, "rollout/topology=multi_model", "rollout.topology.models.reference.update_weights=null"],
        "models.reference.update_weights=None: the trainer's weights would go into actor and reference; set it to",
    ),
    (
        [QWEN, "rollout/topology=multi_model", "rollout.topology.models.reward.path=/elsewhere",
         "rollout.topology.models.reward.update_weights=true"],
        "models.reward.update_weights=True: its path is /elsewhere, not the trained checkpoint; set it to false",
    ),
    (
        [QWEN, f"++{G}.more.path=/a", f"{G}.engine.path=/b"],
        f"error: {G}.more.path=/a: groups of model actor have different paths",
    ),
    (
        [QWEN, "rollout/topology=multi_model", "rollout.topology.models.reward.path=/nowhere"],
        "error: rollout.topology.models.reward.path=/nowhere: no such folder",
    ),
    ([QWEN, "reward=judge"], "error: reward.parts.judge.served_model=reward: no model that the topology serves"),
    ([QWEN, f"++{G}.trainer.num_engines=1"], f"error: {G}.trainer=trainer: a name of the launcher's own actors"),
    ([QWEN, f"++{G}.router-actor.num_engines=1"], "a name of the launcher's own actors; choose another"),
    # engines that someone else runs
    ([QWEN, "rollout/topology=external"], f"error: {G}.engine.urls=[]: no engines; list them"),
    ([QWEN, "rollout/topology=external", f"{G}.engine.urls=[10.0.0.1:30000]"], "not a server's URL; write http://host"),
    ([QWEN, f"{G}.engine.key_file=/k"], "for engines that someone else runs; ours get keys of their own"),
    # who picks the engine
    (
        [QWEN, "rollout/topology=pd", "rollout.routing=direct", *ON_GPUS],
        "error: rollout.routing=direct: prefill and decode are prefill and decode engines, which a router has to pair",
    ),
    (
        [QWEN, "+rollout.router_args.dp_aware=true"],
        "error: rollout.router_args.dp_aware=True: no router is planned: the rollout picks engines and ranks itself",
    ),
    (
        [QWEN, "rollout/topology=pd", "+rollout.router_args.dp_aware=true", *ON_GPUS],
        "error: rollout.router_args.dp_aware=True: prefill and decode engines (prefill, decode) find their rank by the",
    ),
    # counts
    (
        [QWEN, f"{G}.engine.num_engines=2", f"{G}.engine.num_gpus=4", *ON_GPUS],
        f"error: {G}.engine.num_gpus=4: num_engines is given too; give one of the two",
    ),
    (
        [QWEN, f"{G}.engine.num_gpus=5", f"{G}.engine.tp=2", *ON_GPUS],
        f"error: {G}.engine.num_gpus=5: does not divide into engines of 2 GPUs; give a multiple of 2",
    ),
    (
        [QWEN, f"{G}.engine.gpus_per_engine=3", f"{G}.engine.tp=2", *ON_GPUS],
        f"error: {G}.engine.gpus_per_engine=3.0: tp=2 x pp=1 x dp=1 take 2 GPUs; leave it null",
    ),
    (
        [QWEN, f"{G}.engine.gpus_per_engine=0.5", f"{G}.engine.tp=2", *ON_GPUS],
        f"error: {G}.engine.gpus_per_engine=0.5: the engine takes 2 GPUs; a share is for one GPU",
    ),
    (
        [QWEN, f"{G}.engine.dp=3", "cluster.gpus_per_node=8"],
        "engines of 3 GPUs leave some of a node's 8 unused; make tp x pp x dp a divisor of 8",
    ),
    (
        [QWEN, f"{G}.engine.pp=3", f"{G}.engine.tp=4", "cluster.gpus_per_node=8"],
        "an engine of 12 GPUs does not fill whole nodes of 8; make tp x pp x dp a multiple of 8",
    ),
    (
        [QWEN, f"{G}.engine.num_engines=16", "rollout.topology.colocated=false", *ON_GPUS],
        "error: cluster.num_nodes=1: the trainer takes 1 GPUs and the plan 17, 1 nodes of 8 have 8: "
        "9 are missing (node 1: 8, node 2: 1); add nodes",
    ),
    (
        [QWEN, f"{G}.engine.tp=2", *ON_GPUS],
        f"error: {G}.engine.colocated=True: an engine of 2 GPUs shares those of a trainer that has 1; set it to false",
    ),
    (
        [QWEN, "trainer.parallel.tp=2", "cluster.gpus_per_node=1", "cluster.num_nodes=4"],
        "error: trainer.parallel.tp=2: a node has 1 GPUs, and tensor-parallel ranks must sit on one node",
    ),
    (
        [QWEN, "cluster.gpus_per_node=8", "mode=run"],
        "error: cluster.gpus_per_node=8: this machine has 0: 8 are missing; use cluster=ray on a cluster that has",
    ),
    ([QWEN, "cluster.num_nodes=2", "mode=run"], "error: cluster.num_nodes=2: this cluster is one machine; use"),
    ([QWEN, "trainer.threads=4096"], "error: trainer.threads=4096: this machine has "),
    # server arguments
    (
        [QWEN, f"+{G}.engine.overrides.max_total_tokens=lots"],
        f"error: {G}.engine.overrides.max_total_tokens=lots: expected int | null, got str; see SGLang's ServerArgs",
    ),
    (
        [QWEN, "+rollout.server_args.cpu.sleep_on_idle=3"],
        "error: rollout.server_args.cpu.sleep_on_idle=3: expected bool, got int; see SGLang's ServerArgs",
    ),
    (
        [QWEN, f"+{G}.engine.overrides.tp_size=2"],
        f"error: {G}.engine.overrides.tp_size=2: set by the launcher for each server; set tp of the group",
    ),
    ([QWEN, f"+{G}.engine.overrides.encoder_only=true"], "set by the launcher for each server; set worker_type"),
    ([QWEN, f"+{G}.engine.overrides.model_path=/m"], "set by the launcher for each server; set path of the group"),
    # recipes
    ([QWEN, "model.hf_config=qwen3-32b", "mode=run"], "is enough to plan, and a run needs the weights; give the"),
    (
        [QWEN, "model.family=glm_omni"],
        "error: model.spec._target_=components.models.qwen3.spec.layer_spec: builds qwen3's model, "
        "and the weights are glm_omni's; choose model=glm_omni",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("args", "line"), BAD, ids=[" ".join(args)[:70] for args, _ in BAD])
def test_refused(
    args: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check_refusal(args, line, capsys)
    assert list(tmp_path.iterdir()) == []
