"""Tokens that an engine never samples. In the engine, since the router drops ``logit_bias`` from native requests."""

from __future__ import annotations

import math
import os
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

BANNED_ENV = "SLIME_LAUNCH_BANNED_TOKENS"
SAMPLER_TARGET = "sglang.srt.layers.sampler.Sampler._preprocess_logits"


@cache
def banned_tokens() -> list[int]:
    """Ids named in the environment, comma separated."""
    return [int(token) for token in os.environ.get(BANNED_ENV, "").split(",") if token]


def ban_tokens(logits_BV: Tensor, *_: Any, **__: Any) -> Tensor:
    """Take all probability from the banned tokens, before sampling and before logprobs are read."""
    if ids := banned_tokens():
        logits_BV[:, ids] = -math.inf
    return logits_BV
