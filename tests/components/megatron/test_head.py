"""Log-probabilities in chunks against all logits at once, values and gradients; two ranks are test_invariance's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from components.megatron.trainer import MegatronTrainer
from tests.components.megatron.helpers import random_samples, trainer_settings, write_random

VOCAB, COLUMNS, HIDDEN = 50, 64, 16
BANNED = (3, 17, 60)
"""One of the placeholders is beyond the vocabulary: padding by itself."""


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MegatronTrainer]:
    folder = write_random(tmp_path_factory.mktemp("checkpoint"), "qwen3", vocab_size=113, tie_word_embeddings=True)
    started = MegatronTrainer(**trainer_settings(folder, "qwen3"))
    started.start({})
    yield started
    started.stop()


def batch() -> dict[str, torch.Tensor]:
    """Places, targets and masks of 3 samples in 2 rows of 7 tokens; one response token counts nowhere."""
    return {
        "slots_NR": torch.tensor([[1, 2, 3, 4], [8, 9, 10, 0], [8, 11, 0, 0]]),
        "targets_NR": torch.tensor([[5, 49, 0, 1], [9, 9, 30, 0], [2, 4, 0, 0]]),
        "mask_NR": torch.tensor([[1.0, 1, 0, 1], [1, 1, 1, 0], [1, 1, 0, 0]]),
    }


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_chunks_give_what_all_logits_give(chunk: int, temperature: float, trainer: MegatronTrainer) -> None:
    from components.megatron.head import Head

    torch.manual_seed(chunk)
    hidden_SBD = torch.randn(7, 2, HIDDEN, requires_grad=True)
    weight_VD = torch.randn(COLUMNS, HIDDEN, requires_grad=True)
    places = batch()
    upstream_NR = torch.randn(3, 4)
    head = Head(VOCAB, temperature, BANNED, chunk)
    logprobs_NR, entropy_NR = head(hidden_SBD, weight_VD, **places)
    mine = torch.autograd.grad((logprobs_NR * upstream_NR).sum(), (hidden_SBD, weight_VD))

    logits_BSV = (hidden_SBD.double().transpose(0, 1) @ weight_VD.double().T) / temperature
    never = torch.zeros(COLUMNS, dtype=torch.bool)
    never[[*BANNED, *range(VOCAB, COLUMNS)]] = True
    log_p_NRV = logits_BSV.flatten(0, 1)[places["slots_NR"]].masked_fill(never, -torch.inf).log_softmax(-1)
    expected_NR = log_p_NRV.gather(-1, places["targets_NR"].unsqueeze(-1)).squeeze(-1) * places["mask_NR"]
    entropies_NR = -(log_p_NRV.exp() * log_p_NRV.nan_to_num(neginf=0.0)).sum(-1) * places["mask_NR"]
    theirs = torch.autograd.grad((expected_NR * upstream_NR).sum(), (hidden_SBD, weight_VD))

    torch.testing.assert_close(logprobs_NR, expected_NR.float(), rtol=0, atol=4e-6)
    torch.testing.assert_close(entropy_NR, entropies_NR.float(), rtol=0, atol=4e-6)
    assert not entropy_NR.requires_grad
    for one, other in zip(mine, theirs, strict=True):
        assert (one - other).norm() <= 1e-6 * other.norm()


def test_nothing_that_counts_gives_nothing(trainer: MegatronTrainer) -> None:
    from components.megatron.head import Head

    hidden_SBD, weight_VD = torch.randn(7, 2, HIDDEN, requires_grad=True), torch.randn(COLUMNS, HIDDEN)
    places = batch()
    places["mask_NR"].zero_()
    logprobs_NR, entropy_NR = Head(VOCAB, 1.0, (), 4)(hidden_SBD, weight_VD, **places)
    logprobs_NR.sum().backward()
    assert not logprobs_NR.any() and not entropy_NR.any() and not hidden_SBD.grad.any()


def test_a_model_without_the_hook_gives_the_same_step(
    trainer: MegatronTrainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from components.models.decoder import DecoderModel

    parts = trainer._ready()
    batches = parts.batcher.cut(random_samples("qwen3"), torch.randn(8), 0, 1)
    results = []
    for takes in (True, False):
        monkeypatch.setattr(DecoderModel, "takes_head", takes)
        parts.optimizer.zero_grad()
        report = parts.stepper.gradients(batches)
        grads = [parameter.main_grad.clone() for parameter in parts.chunks[0].parameters()]
        results.append((report.sums, grads))
    for name, value in results[0][0].items():
        assert value == pytest.approx(results[1][0][name], rel=1e-5, abs=1e-5), name
    for one, other in zip(results[0][1], results[1][1], strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()
