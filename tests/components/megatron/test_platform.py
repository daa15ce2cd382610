"""The CPU bridge and the process world: what they change, what they leave alone, where they listen."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from components.megatron.platform import load_platform
from components.megatron.trainer import MegatronTrainer
from slime_launch.errors import ComponentError, DeadlineError
from tests.components.megatron.helpers import random_samples, trainer_settings, write_random


def test_the_bridge_serves_cuda_calls_and_leaves_device_contexts_alone() -> None:
    platform = load_platform("cpu")
    platform.install()
    platform.install()
    import torch

    assert torch.cuda.current_device() == torch.device("cpu")
    assert torch.zeros(2, device="cuda").device.type == "cpu"
    assert torch.ones(2).cuda().device.type == "cpu"
    with torch.device("meta"):
        assert torch.zeros(2).device.type == torch.arange(2).device.type == "meta"


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ComponentError, match="tpu"):
        load_platform("tpu")


@pytest.mark.parametrize("rank", [0, 1])
def test_an_absent_rank_is_a_deadline(rank: int, tmp_path: Path) -> None:
    write_random(tmp_path, "qwen3")
    trainer = MegatronTrainer(**trainer_settings(tmp_path, "qwen3", world_size=2, rank=rank, timeout_s=1.0))
    with pytest.raises(DeadlineError, match="waited 1 s for 2 ranks at tcp://127"):
        trainer.start({})
    trainer.stop()


def test_a_second_trainer_in_one_process_is_refused(tmp_path: Path) -> None:
    write_random(tmp_path, "qwen3")
    first, second = (MegatronTrainer(**trainer_settings(tmp_path, "qwen3")) for _ in range(2))
    first.start({})
    second.rendezvous = first.rendezvous
    with pytest.raises(ComponentError, match="training world already"):
        second.start({})
    first.stop()


def test_sockets_listen_on_loopback_only(tmp_path: Path) -> None:
    def listening() -> set[tuple[str, int]]:
        links = psutil.Process().net_connections()
        return {(link.laddr.ip, link.laddr.port) for link in links if link.status == psutil.CONN_LISTEN}

    write_random(tmp_path, "qwen3")
    before = listening()
    trainer = MegatronTrainer(**trainer_settings(tmp_path, "qwen3"))
    trainer.start({})
    assert {host for host, _ in listening() - before} == {"127.0.0.1"}
    trainer.stop()


@pytest.mark.parametrize("family", ["qwen3", "glm_omni", "glm4_moe"])
def test_recomputed_activations_give_the_same_step(family: str, tmp_path: Path) -> None:
    write_random(tmp_path, family)
    steps = []
    for recompute in ("none", "selective", "full"):
        trainer = MegatronTrainer(**trainer_settings(tmp_path, family, recompute=recompute))
        trainer.start({})
        steps.append([trainer.train(step, random_samples(family)) for step in range(2)])
        trainer.stop()
    for plain, *others in zip(*steps, strict=True):
        for again in others:
            assert plain["train/loss"] == again["train/loss"]
            assert plain["train/grad_norm"] == pytest.approx(again["train/grad_norm"], rel=1e-6)


@pytest.mark.parametrize("trains", [{"freeze": ["embedding"]}, {"train_only": [r"layers\.0\.mlp"]}])
def test_recomputed_layers_train_behind_a_frozen_embedding(trains: dict[str, list[str]], tmp_path: Path) -> None:
    write_random(tmp_path, "qwen3")
    norms = []
    for recompute in ("none", "selective", "full"):
        trainer = MegatronTrainer(**trainer_settings(tmp_path, "qwen3", recompute=recompute, **trains))
        trainer.start({})
        norms.append(trainer.train(1, random_samples("qwen3"))["train/grad_norm"])
        trainer.stop()
    assert norms[0] > 0 and norms[1:] == pytest.approx(norms[:1] * 2, rel=1e-6)


def test_routing_needs_no_kernel_and_every_token_stays() -> None:
    load_platform("cpu").install()
    import torch
    from megatron.core.transformer.moe import moe_layer, moe_utils

    from components.megatron.cpu_moe import token_dispatcher

    assert moe_layer.MoEAlltoAllTokenDispatcher is token_dispatcher
    tokens_TH, weight_EH = torch.randn(5, 4), torch.randn(3, 4, requires_grad=True)
    logits_TE = moe_utils.router_gating_linear(tokens_TH, weight_EH, None, torch.float32)
    torch.testing.assert_close(logits_TE, tokens_TH @ weight_EH.T)
    (logits_TE**2).sum().backward()
    torch.testing.assert_close(weight_EH.grad, 2 * (tokens_TH @ weight_EH.detach().T).T @ tokens_TH)
