"""Attention of whole batches against attention of each request, without a server."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from components.sglang.attention import batched_decode, batched_extend

OPTIONS = {"scaling": 0.25, "enable_gqa": True, "sliding_window_size": None}
H, K, D, SLOTS, WIDTH = 4, 2, 16, 64, 160


def never(*_: object, **__: object) -> Tensor:
    raise AssertionError("the original was called")


def pools(lengths: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys, values, table and rows; what lies behind a request's end must not matter, not even as NaN."""
    keys, values = torch.randn(SLOTS, K, D), torch.randn(SLOTS, K, D)
    keys[0] = values[0] = torch.nan
    rows = torch.randperm(len(lengths) + 2)[: len(lengths)]
    table = torch.randint(1, SLOTS, (len(lengths) + 2, WIDTH), dtype=torch.int32)
    for row, length in zip(rows, lengths, strict=True):
        table[row, length:] = 0
    return keys, values, table, rows


def one_by_one(query_NHD: Tensor, pool: tuple[Tensor, ...], prefixes: list[int], new: list[int]) -> Tensor:
    keys, values, table, rows = pool
    out, start = torch.empty_like(query_NHD), 0
    for row, prefix, count in zip(rows, prefixes, new, strict=True):
        for place in range(count):
            slots = table[row, : prefix + place + 1]
            k_HLD, v_HLD = (each[slots].repeat_interleave(H // K, 1).transpose(0, 1) for each in (keys, values))
            weights_HL = (torch.einsum("hd,hld->hl", query_NHD[start], k_HLD) * 0.25).softmax(-1)
            out[start] = torch.einsum("hl,hld->hd", weights_HL, v_HLD)
            start += 1
    return out


def test_decode_equals_attention_of_each_request() -> None:
    torch.manual_seed(0)
    lengths = [1, 9, 30]
    pool = pools(lengths)
    query_BHD = torch.randn(3, H, D)
    out_BHD = torch.empty_like(query_BHD)
    batched_decode(never, None, query_BHD, out_BHD, *pool, torch.tensor(lengths), causal=False, **OPTIONS)
    wanted = one_by_one(query_BHD, pool, [length - 1 for length in lengths], [1, 1, 1])
    torch.testing.assert_close(out_BHD, wanted, atol=1e-5, rtol=1e-5)


def extend(original: Any, pool: tuple[Tensor, ...], query_NHD: Tensor, prefixes: list[int], new: list[int]) -> Tensor:
    out_NHD = torch.empty_like(query_NHD)
    before, count = torch.tensor(prefixes), torch.tensor(new)
    batched_extend(original, None, query_NHD, out_NHD, *pool, before + count, before, count, causal=True, **OPTIONS)
    return out_NHD


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 9), st.lists(st.sampled_from([1, 6, 7, 20]), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_extend_equals_attention_of_each_token(prefix: int, new: list[int], draw: Any) -> None:
    torch.manual_seed(draw.getrandbits(32))
    prefixes = [prefix + draw.randint(0, 1) for _ in new]
    pool = pools([before + more for before, more in zip(prefixes, new, strict=True)])
    query_NHD = torch.randn(sum(new), H, D)
    wanted = one_by_one(query_NHD, pool, prefixes, new)
    torch.testing.assert_close(extend(never, pool, query_NHD, prefixes, new), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("prefixes", "new"), [([0, 0], [1, 129]), ([100] + [0] * 8, [8] * 9)], ids=["long", "unlike"])
def test_extend_leaves_what_does_not_pay_to_the_original(prefixes: list[int], new: list[int]) -> None:
    called = []
    pool = pools([before + more for before, more in zip(prefixes, new, strict=True)])
    extend(lambda *args, **options: called.append(options), pool, torch.randn(sum(new), H, D), prefixes, new)
    assert called == [{"encoder_lens": None, "causal": True, **OPTIONS}]


def test_sliding_windows_are_left_to_the_original() -> None:
    called: list[Any] = []
    lengths = torch.ones(1, dtype=torch.long)
    tensors = [torch.zeros(1, 1, 1)] * 4 + [torch.zeros(1, 1, dtype=torch.int32), lengths, lengths]
    batched_decode(lambda *a, **k: called.append(k), None, *tensors, sliding_window_size=4)
    batched_extend(
        lambda *a, **k: called.append(k), None, *tensors, lengths, lengths, causal=True, sliding_window_size=4
    )
    assert [options["sliding_window_size"] for options in called] == [4, 4]
