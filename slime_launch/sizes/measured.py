"""What each kind of actor takes on CPU beside weights, caches and activations: measured, not derived.

Proportional set size (shared pages divided among those who map them) when the sum over all processes was largest, in
three whole runs of the shipped experiments with tiny models (``trainer.num_steps=3``; sglang 0.5.23, torch 2.14.1,
ray 2.60.0, one thread each): the larger of the runs, rounded up, each with the Ray actor that hosts it. The sums agree
with the runs' own peaks: 5.0 GB for glm_omni_grpo and 4.1 GB for qwen3_grpo. Libraries dominate, so a process alone
shows more (shared pages count in full) and many of one kind show less each.
"""

from __future__ import annotations

from collections.abc import Mapping

MB = 1 << 20
CPU_PROCESS_BYTES: Mapping[str, int] = {
    "launcher": 400 * MB,  # slime-launch itself 87, Ray's processes 308
    "checkpoint": 1190 * MB,  # while it makes the tiny checkpoint; gone before the rest is up
    "encoder": 840 * MB,
    "regular": 2270 * MB,  # HTTP server 811, scheduler 836, detokenizer 571; a text model 150 less
    "router": 135 * MB,
    "trainer": 740 * MB,
    "rollout": 680 * MB,
}
"""Bytes of one actor by its kind in the plan, ``launcher`` for what every run has."""
