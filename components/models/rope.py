"""Rotary positions as data: what config.json asks for, how fast each channel pair turns, and the gain on it.

Scalings: linear (arXiv:2306.15595), YaRN (arXiv:2309.00071), Llama 3.1's (arXiv:2407.21783, section 3.4, as published
with its weights). Rounded as transformers rounds them: a last bit of a frequency is a visible angle at 100,000 tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slime_launch.errors import ComponentError

if TYPE_CHECKING:
    from torch import Tensor

NEEDED: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
"""Rope types that are served -> the keys each cannot do without."""
OPTIONAL = {
    *("rope_type", "type", "rope_theta", "partial_rotary_factor", "mrope_section"),
    *("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
}
THETA, THETAS = 10_000.0, {"qwen2_5_vl": 1e6, "qwen2_5_vl_text": 1e6}
"""The base where config.json gives none: transformers' ``default_theta``, and its exceptions by ``model_type``."""
KNOWN = OPTIONAL.union(*NEEDED.values())


@dataclass(frozen=True)
class Rope:
    """Rotary positions of one decoder.

    kind: a key of NEEDED. theta: the base. channels: how many of a head's channels turn (even).
    sections: how many channel pairs follow each axis of the positions in turn (time, height, width, time, ...).
    scaling: config.json's numbers for the kind.
    """

    kind: str
    theta: float
    channels: int
    sections: tuple[int, ...]
    scaling: Mapping[str, Any]

    def frequencies(self) -> Tensor:
        """Radians a position [channels / 2], float32."""
        import torch

        exponents_C = torch.arange(0, self.channels, 2, dtype=torch.float32) / self.channels
        return SCALINGS[self.kind](self, self.theta**exponents_C)

    @property
    def gain(self) -> float:
        """Factor on the turned channels of queries and keys; other than 1 for YaRN only (its equation 22)."""
        if self.kind != "yarn":
            return 1.0
        given = self.scaling.get("attention_factor")
        if given is not None:
            return float(given)
        mscale, all_dim = self.scaling.get("mscale"), self.scaling.get("mscale_all_dim")
        factor = self.scaling["factor"]
        return _gain(factor, mscale) / _gain(factor, all_dim) if mscale and all_dim else _gain(factor, 1.0)


def rope_of(text: Mapping[str, Any], partial_rotary_factor: float = 1.0) -> Rope:
    """Rotary positions that the decoder's part of config.json asks for, as transformers 5 or 4 writes it.

    partial_rotary_factor: the architecture's own, where config.json gives none.
    Raises ComponentError for a scaling that is not served, and for missing, unknown or contradicting keys.
    """
    given = _parameters(text)
    if unknown := sorted(set(given) - KNOWN):
        raise ComponentError(f"config.json: rope_parameters has {unknown}, which are not mapped to Megatron")
    kind = given["rope_type"]
    if kind not in NEEDED:
        raise ComponentError(f"config.json: rope_parameters.rope_type={kind!r}: rotary scalings served: {list(NEEDED)}")
    if missing := [key for key in NEEDED[kind] if given.get(key) is None]:
        raise ComponentError(f"config.json: rope_parameters.rope_type={kind} has no {missing}")
    head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    channels = int(head_dim * (given.get("partial_rotary_factor") or partial_rotary_factor))
    if channels % 2 or not channels:
        raise ComponentError(f"config.json: partial_rotary_factor leaves {channels} of head_dim={head_dim}: need pairs")
    sections = tuple(given.get("mrope_section") or (channels // 2,))
    if 2 * sum(sections) != channels:
        raise ComponentError(
            f"config.json: rope_parameters.mrope_section={list(sections)} must add up to half of {channels} rotary "
            "channels"
        )
    return Rope(kind, float(given["rope_theta"]), channels, sections, given)


def _parameters(text: Mapping[str, Any]) -> dict[str, Any]:
    """One dictionary from ``rope_parameters`` (transformers 5), or ``rope_scaling`` and the keys beside it (4)."""
    given = dict(text.get("rope_scaling") or text.get("rope_parameters") or {})
    for key in ("rope_theta", "partial_rotary_factor"):
        given.setdefault(key, text.get(key))
    given["rope_theta"] = given["rope_theta"] or THETAS.get(str(text.get("model_type")), THETA)
    kind = given.get("rope_type") or given.get("type") or "default"
    given["rope_type"] = "default" if kind == "mrope" else kind
    longest = text.get("max_position_embeddings")
    original = text.get("original_max_position_embeddings") or given.get("original_max_position_embeddings") or longest
    given["original_max_position_embeddings"] = original
    if given["rope_type"] == "yarn" and given.get("factor", 0) is None and longest and original:
        given["factor"] = longest / original
    return given


def _gain(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _default(rope: Rope, periods_C: Tensor) -> Tensor:
    return 1.0 / periods_C


def _linear(rope: Rope, periods_C: Tensor) -> Tensor:
    return (1.0 / periods_C) / rope.scaling["factor"]


def _llama3(rope: Rope, periods_C: Tensor) -> Tensor:
    """Slow pairs turn ``factor`` times slower, fast ones as before, those between by a blend."""
    import torch

    low, high, factor = (rope.scaling[key] for key in ("low_freq_factor", "high_freq_factor", "factor"))
    turns_C = 1.0 / periods_C
    length_C = 2 * math.pi / turns_C
    original = rope.scaling["original_max_position_embeddings"]
    blend_C = (original / length_C - low) / (high - low)
    blended_C = (1 - blend_C) * turns_C / factor + blend_C * turns_C
    slow_C, fast_C = length_C > original / low, length_C < original / high
    return torch.where(slow_C, turns_C / factor, torch.where(fast_C, turns_C, blended_C))


def _yarn(rope: Rope, periods_C: Tensor) -> Tensor:
    """Pairs that turn less than beta_slow times in the original context are interpolated, over beta_fast kept."""
    import torch

    def pair(turns: float) -> float:
        original = rope.scaling["original_max_position_embeddings"]
        return rope.channels * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair(rope.scaling.get("beta_fast") or 32), pair(rope.scaling.get("beta_slow") or 1)
    if rope.scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.channels - 1)
    places_C = torch.arange(rope.channels // 2, dtype=torch.float32)
    keep_C = 1 - ((places_C - low) / ((high if high != low else high + 0.001) - low)).clamp(0, 1)
    return 1.0 / (rope.scaling["factor"] * periods_C) * (1 - keep_C) + 1.0 / periods_C * keep_C


SCALINGS: Mapping[str, Callable[[Rope, Tensor], Tensor]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
"""Kind -> (rope, unscaled radians' inverse [channels / 2]) -> radians a position."""
