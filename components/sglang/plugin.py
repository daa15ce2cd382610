"""The SGLang plugin (entry point group ``sglang.srt.plugins``); inert outside servers that ``Server`` started."""

from __future__ import annotations

import multiprocessing
import os
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from components.sglang import (
    SGLANG_VERSION,
    attention,
    banned,
    caches,
    epd,
    idle,
    private,
    samples,
    seeds,
    sockets,
    tokens,
)

KIND_ENV = "SLIME_LAUNCH_SERVER_KIND"
WITHOUT_ENV = "SLIME_LAUNCH_WITHOUT_HOOKS"
"""Targets, comma separated, that stay as SGLang has them; for comparisons."""
ENCODER, TOKENIZER, SCHEDULER, OTHER = "encoder", "tokenizer", "scheduler", "other"


@dataclass(frozen=True)
class Hook:
    """One change to SGLang: where, what, how (a HookType name), in which processes, on which devices."""

    target: str
    change: Callable[..., Any]
    how: str
    where: tuple[str, ...]
    cpu_only: bool = False


HOOKS = (
    Hook(epd.POSITIONS_TARGET, epd.add_positions, "AFTER", (TOKENIZER, SCHEDULER)),
    Hook(epd.TOKENIZER_TARGET, epd.refuse_local_encoding, "AFTER", (TOKENIZER,)),
    Hook(epd.TOWER_TARGET, epd.disable_local_tower, "AFTER", (SCHEDULER,)),
    Hook(sockets.STORE_TARGET, sockets.create_bound_store, "AROUND", (SCHEDULER, ENCODER)),
    Hook(tokens.LOAD_TARGET, tokens.keep_ids, "AROUND", (TOKENIZER,)),
    Hook(tokens.COMBINE_TARGET, tokens.fit_mask, "AFTER", (TOKENIZER,)),
    Hook(private.INFO_TARGET, private.redact_tokens, "AFTER", (TOKENIZER,)),
    Hook(caches.FLUSH_TARGET, caches.forget_images, "AFTER", (SCHEDULER,)),
    Hook(banned.SAMPLER_TARGET, banned.ban_tokens, "AFTER", (SCHEDULER,)),
    Hook(attention.DECODE_TARGET, attention.batched_decode, "AROUND", (SCHEDULER,), cpu_only=True),
    Hook(attention.EXTEND_TARGET, attention.batched_extend, "AROUND", (SCHEDULER,), cpu_only=True),
    Hook(samples.PREFILL_TARGET, samples.prefill_once, "AROUND", (SCHEDULER,), cpu_only=True),
    Hook(idle.LOOP_TARGET, idle.wait_for_requests, "AROUND", (SCHEDULER,), cpu_only=True),
    Hook(seeds.BATCH_TARGET, seeds.add_seeds, "AFTER", (SCHEDULER,), cpu_only=True),
    Hook(seeds.FILTER_TARGET, seeds.filter_min_p, "AROUND", (SCHEDULER,), cpu_only=True),
)


def register() -> None:
    """Register the hooks that this process needs; SGLang calls it in each process of a server."""
    kind = os.environ.get(KIND_ENV)
    if kind is None:
        return
    from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    here, on_cpu = _process(kind), os.environ.get("SGLANG_USE_CPU_ENGINE") == "1"
    if on_cpu:
        import sgl_kernel  # noqa: F401  (before any model file looks up its operators)

    register_resolution_hook("handle_encoder_disaggregation")(epd.allow_architectures)
    without = os.environ.get(WITHOUT_ENV, "").split(",")
    for hook in HOOKS:
        if here in hook.where and (on_cpu or not hook.cpu_only) and hook.target not in without:
            _require(hook.target)
            HookRegistry.register(hook.target, hook.change, HookType[hook.how])


def _process(kind: str) -> str:
    """What this process of a server does. A hook imports its target, so no process gets one that it has no use for."""
    if kind == ENCODER:
        return ENCODER
    if multiprocessing.parent_process() is None:
        return TOKENIZER
    return SCHEDULER if "sglang.srt.managers.scheduler" in sys.modules else OTHER


def _require(target: str) -> None:
    """End the process when a target is not there: SGLang would only log it and serve unchanged."""
    try:
        pkgutil.resolve_name(target)
    except (ImportError, AttributeError) as error:
        raise SystemExit(
            f"slime-launch cannot extend {target}: {error!r}; it is written for sglang {SGLANG_VERSION}"
        ) from error
