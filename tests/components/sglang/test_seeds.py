"""Sampling by request seeds: on real engines, and the parts without one."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from components.sglang.cpu import KERNELS
from components.sglang.seeds import add_seeds, filter_min_p
from slime_launch.types import Endpoint
from tests.components.sglang.conftest import Engine
from tests.servers import post

LIMITS: list[dict[str, Any]] = [{}, {"top_p": 0.8}, {"top_k": 5, "min_p": 0.05}]


def tokens(endpoint: Endpoint, number: int, seed: int | None, **more: Any) -> list[int]:
    sampling = {"max_new_tokens": 16, "temperature": 1.0, "ignore_eos": True, **more}
    if seed is not None:
        sampling["sampling_seed"] = seed
    prompt = [20 + (number * j) % 90 for j in range(3 + number % 7)]
    reply = post(endpoint, "/generate", {"input_ids": prompt, "sampling_params": sampling})
    assert reply.status_code == 200, reply.text
    ids: list[int] = reply.json()["output_ids"]
    return ids


def batch(endpoint: Endpoint, at_once: int, seeded: bool = True, **more: Any) -> dict[int, list[int]]:
    """48 samples, asked for in an order that depends on how many at once."""
    numbers = sorted(range(48), key=lambda number: number * at_once % 47)
    with ThreadPoolExecutor(at_once) as pool:
        made = pool.map(lambda number: tokens(endpoint, number, number * 7919 if seeded else None, **more), numbers)
        return dict(zip(numbers, made, strict=True))


@pytest.mark.servers
@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_samples_are_those_of_their_seeds_on_any_engine_in_any_company(
    text: Engine, replicas: Engine, limits: dict[str, Any]
) -> None:
    assert text.router is not None
    alone, together = batch(text.router, 1, **limits), batch(text.endpoint, 24, **limits)
    assert alone == together
    assert batch(replicas.endpoint, 7, **limits) == alone


@pytest.mark.servers
def test_without_seeds_no_batch_repeats(text: Engine) -> None:
    first, second = batch(text.endpoint, 24, seeded=False), batch(text.endpoint, 24, seeded=False)
    assert sum(first[number] == second[number] for number in first) < 5


@pytest.mark.servers
def test_seeded_samples_follow_the_distribution(text: Engine) -> None:
    """The first token of 2,000 seeds against the engine's own probabilities: chi-square, 5 sigma."""
    count = 2000
    sampling = [{"max_new_tokens": 1, "temperature": 1.0, "sampling_seed": seed} for seed in range(count)]
    body = {"input_ids": [[20, 21, 22]] * count, "sampling_params": sampling, "return_logprob": True}
    answers = post(text.endpoint, "/generate", body).json()
    drawn = [answer["meta_info"]["output_token_logprobs"][0] for answer in answers]
    seen = torch.tensor([token for _, token, _ in drawn]).bincount()
    expected = {token: count * torch.tensor(logprob).exp().item() for logprob, token, _ in drawn}
    often = {token: times for token, times in expected.items() if times >= 5}
    assert len(often) > 10
    chi = sum((seen[token].item() - times) ** 2 / times for token, times in often.items())
    assert chi < len(often) + 5 * (2 * len(often)) ** 0.5


def test_requests_without_a_seed_get_different_ones() -> None:
    parameters = [SimpleNamespace(sampling_seed=seed) for seed in (None, 5, None)]
    requests = [SimpleNamespace(sampling_params=each) for each in parameters]
    info = add_seeds(SimpleNamespace(sampling_seed=None, device="cpu"), object, SimpleNamespace(reqs=requests), 99)
    first, given, last = info.sampling_seed.tolist()
    assert given == 5
    assert len({first, given, last}) == 3
    kept = SimpleNamespace(sampling_seed="theirs", device="cpu")
    assert add_seeds(kept, object, None).sampling_seed == "theirs"


def test_min_p_drops_the_tail_before_the_original_sees_it() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.4, 0.3, 0.2, 0.1]])
    seen = []

    def original(probs_BV: torch.Tensor, *args: Any, **options: Any) -> str:
        seen.append((probs_BV, args, options))
        return "sampled"

    out = filter_min_p(original, probs, None, None, torch.tensor([0.2, 0.6]), True, "seeds", "positions", max_top_k=3)  # type: ignore[arg-type]
    assert out == "sampled"
    filtered, args, options = seen[0]
    torch.testing.assert_close(filtered, torch.tensor([[0.5, 0.3, 0.15, 0.0], [0.4, 0.3, 0.0, 0.0]]))
    assert args[3] is False
    assert args[4:] == ("seeds", "positions")
    assert options == {"max_top_k": 3}
    assert probs[0, 3] == 0.05


def murmur3(data: bytes) -> int:
    """MurmurHash3 x86_32 with seed 0, of whole blocks, in Python's integers."""
    hash_ = 0
    for start in range(0, len(data), 4):
        block = int.from_bytes(data[start : start + 4], "little") * 0xCC9E2D51 % 2**32
        block = (block << 15 | block >> 17) % 2**32 * 0x1B873593 % 2**32
        hash_ ^= block
        hash_ = ((hash_ << 13 | hash_ >> 19) % 2**32 * 5 + 0xE6546B64) % 2**32
    hash_ ^= len(data)
    hash_ = (hash_ ^ hash_ >> 16) * 0x85EBCA6B % 2**32
    hash_ = (hash_ ^ hash_ >> 13) * 0xC2B2AE35 % 2**32
    return hash_ ^ hash_ >> 16


def test_hash_is_murmur3() -> None:
    code = """
import torch, sgl_kernel
seeds = torch.tensor([0, 42, 2**63 - 1, -1])
found = torch.ops.sgl_kernel.murmur_hash32_cpu.default(
    seeds.to(torch.uint64), torch.tensor([0, 7, 123456, 2**31 - 1]), torch.arange(5)
)
print(found.dtype, found.to(torch.int64).flatten().tolist())
"""
    env = {"PYTHONPATH": str(KERNELS), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    wanted = [
        murmur3(seed.to_bytes(8, "little") + position.to_bytes(4, "little") + column.to_bytes(4, "little"))
        for seed, position in ((0, 0), (42, 7), (2**63 - 1, 123456), (2**64 - 1, 2**31 - 1))
        for column in range(5)
    ]
    assert done.stdout.strip() == f"torch.uint32 {wanted}"


def test_the_reference_hash_is_the_published_one() -> None:
    assert murmur3(b"test") == 0xBA6BD213
    assert murmur3(b"") == 0
