"""A prompt is prefilled once on CPU, however many samples of it are asked for together.

SGLang's radix cache remembers a prompt once its prefill is done; samples that come in the same batch would each compute
it again. Here the others wait for one batch, and then find it in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

PREFILL_TARGET = "sglang.srt.managers.scheduler.Scheduler.get_new_batch_prefill"
_LEAST = 8  # tokens that must be saved; below, another batch costs more
_WAITED = "_slime_launch_waited"


def prefill_once(original: Callable[..., Any], scheduler: Any, *args: Any, **options: Any) -> Any:
    """Choose the next batch to prefill among the waiting requests without those that wait for another's prompt."""
    waiting = scheduler.waiting_queue
    later = [] if len(waiting) < 2 or scheduler.tree_cache.disable else list(_later_samples(scheduler))
    if not later:
        return original(scheduler, *args, **options)
    held = set(map(id, later))
    scheduler.waiting_queue = [request for request in waiting if id(request) not in held]
    try:
        return original(scheduler, *args, **options)
    finally:
        places = {id(request): place for place, request in enumerate(waiting)}
        left = [*scheduler.waiting_queue, *later]
        scheduler.waiting_queue = sorted(left, key=lambda request: places.get(id(request), len(waiting)))


def _later_samples(scheduler: Any) -> Iterator[Any]:
    """Requests whose prompt an earlier one is about to compute. None waits twice, whatever becomes of the earlier."""
    first: dict[Any, Any] = {}
    cached: dict[Any, bool] = {}
    for request in scheduler.waiting_queue:
        prompt = _prompt(request)
        if prompt is None:
            continue
        if prompt not in first:
            first[prompt] = request
        elif not getattr(request, _WAITED, False):
            if prompt not in cached:
                cached[prompt] = _is_cached(scheduler.tree_cache, first[prompt])
            if not cached[prompt]:
                setattr(request, _WAITED, True)
                yield request


def _prompt(request: Any) -> Any:
    """What makes two prompts the same for the cache, None where it would not be asked."""
    asks_for_prompt = request.return_logprob and 0 <= request.logprob_start_len < len(request.origin_input_ids) - 1
    if asks_for_prompt or request.output_ids or request.positional_embed_overrides is not None:
        return None
    return request.origin_input_ids.tobytes(), request.extra_key, request.cache_salt


def _is_cached(tree: Any, request: Any) -> bool:
    request.init_next_round_input(tree, cow_mamba=False)
    return bool(len(request.origin_input_ids) - request.prefix_len < _LEAST)
