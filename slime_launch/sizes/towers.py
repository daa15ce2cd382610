"""The vision towers' parameters: (name below ``encoders.vision.``, size, how SGLang's ranks split it).

The trainer keeps every tower whole and frozen on the first pipeline stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

from slime_launch.sizes.architectures import VisionShape

Row = tuple[str, int, Literal["whole", "tp"]]
PREFIX = "encoders.vision."


def _glm(v: VisionShape) -> Iterator[Row]:
    """GLM-4.1V and GLM-4.5V: transformers' Glm4vVisionModel."""
    hidden, out = v.hidden_size, v.out_hidden_size
    yield from _patches(v, bias=True)
    yield "embeddings.position_embedding.weight", (v.image_size // v.patch_size) ** 2 * hidden, "whole"
    yield "post_conv_layernorm.weight", hidden, "whole"
    for block in range(v.depth):
        name = f"blocks.{block}."
        yield name + "norms", 2 * hidden, "whole"
        yield name + "attn.qkv.weight", 3 * hidden * hidden, "tp"
        if v.attention_bias:
            yield name + "attn.qkv.bias", 3 * hidden, "tp"
        yield name + "attn.proj.weight", hidden * hidden, "tp"
        yield name + "mlp", 3 * hidden * out, "tp"
    yield "post_layernorm.weight", hidden, "whole"
    yield "downsample", hidden * out * v.spatial_merge_size**2 + out, "whole"
    yield "merger.proj.weight", out * out, "whole"
    yield "merger.post_projection_norm", 2 * out, "whole"
    yield "merger.mlp", 3 * out * v.intermediate_size, "tp"


def _qwen(v: VisionShape) -> Iterator[Row]:
    """Qwen2.5-VL: transformers' Qwen2_5_VisionTransformerPretrainedModel."""
    hidden, inner = v.hidden_size, v.intermediate_size
    merged = hidden * v.spatial_merge_size**2
    yield from _patches(v, bias=False)
    for block in range(v.depth):
        name = f"blocks.{block}."
        yield name + "norms", 2 * hidden, "whole"
        yield name + "attn.qkv", 3 * hidden * hidden + 3 * hidden, "tp"
        yield name + "attn.proj", hidden * hidden + hidden, "tp"
        yield name + "mlp", 3 * hidden * inner + 2 * inner + hidden, "tp"
    yield "merger.ln_q.weight", hidden, "whole"
    yield "merger.mlp", merged * merged + merged + merged * v.out_hidden_size + v.out_hidden_size, "tp"


def _patches(v: VisionShape, bias: bool) -> Iterator[Row]:
    kernel = v.in_channels * v.temporal_patch_size * v.patch_size**2
    yield "patch_embed.proj", v.hidden_size * (kernel + bias), "whole"


def _named(tower: Callable[[VisionShape], Iterator[Row]]) -> Callable[[VisionShape], Iterator[Row]]:
    return lambda shape: ((PREFIX + name, size, split) for name, size, split in tower(shape))


TOWERS: Mapping[str, Callable[[VisionShape], Iterator[Row]]] = {"glm": _named(_glm), "qwen": _named(_qwen)}
