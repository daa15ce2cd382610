"""Peak memory of log-probabilities with a vocabulary of 150,000: in chunks, and from whole logits.

    python benchmarks/logprobs.py [tokens]

Forward and backward of the output layer alone, hidden size 512, one response token of every two. Each way and each
number of tokens in a process of its own; the peak is that of its resident memory (``ru_maxrss``) above what it was
before. A chunk of 256 tokens takes 2 x 147 MB; the weight's gradient, 293 MB, is in every line.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

VOCAB, HIDDEN, CHUNK = 150_000, 512, 256


def measure(way: str, tokens: int) -> None:
    """Print (MB at the peak above the start, seconds, the sum of the log-probabilities) of one forward and backward."""
    from components.megatron import cpu

    cpu.install()

    import torch

    from components.megatron.parallel import Sizes, join_world
    from components.megatron.platform import load_platform
    from slime_launch.machine import free_ports

    join_world(load_platform("cpu"), f"tcp://127.0.0.1:{free_ports(1)[0]}", 0, 1, Sizes(), 60.0)
    from components.megatron.head import Head
    from components.megatron.logprobs import token_logprobs

    torch.manual_seed(0)
    hidden_SBD = torch.randn(tokens, 1, HIDDEN, requires_grad=True)
    weight_VD = torch.empty(VOCAB, HIDDEN).normal_(0.0, 0.02).requires_grad_()
    slots_NR = torch.arange(0, tokens, 2).unsqueeze(0)
    targets_NR = torch.randint(VOCAB, slots_NR.shape)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    if way == "chunks":
        head = Head(VOCAB, 1.0, (), CHUNK)
        logprobs_NR, _ = head(hidden_SBD, weight_VD, slots_NR, targets_NR, torch.ones(slots_NR.shape))
    else:
        logits_BSV = (hidden_SBD @ weight_VD.T).transpose(0, 1)
        logprobs_NR, _ = token_logprobs(logits_BSV.flatten(0, 1)[slots_NR], targets_NR, VOCAB)
    logprobs_NR.sum().backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{peak / 1024:.0f} {time.perf_counter() - began:.2f} {float(logprobs_NR.sum().detach()):.2f}")


def main() -> None:
    """One line a way and a number of tokens."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    for tokens in [int(number) for number in sys.argv[1:]] or [512, 1024, 2048]:
        for way in ("chunks", "whole"):
            command = [sys.executable, "-W", "ignore", __file__, way, str(tokens)]
            answer = subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout.split()
            print(f"{tokens} tokens, {way}: {answer[0]} MB, {answer[1]} s, sum {answer[2]}", flush=True)


if __name__ == "__main__":
    measure(sys.argv[1], int(sys.argv[2])) if sys.argv[1:2] in (["chunks"], ["whole"]) else main()
