"""What a model family is: data. How config.json becomes a Megatron model, and how the weights map."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from components.models.layouts import Layout
from components.models.registry import AUTO, family_name
from components.models.rope import Rope, rope_of
from slime_launch.errors import ComponentError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

HFConfig = Mapping[str, Any]
"""A checkpoint's config.json; the decoder's part may lie under ``text_config`` (see ``text_part``)."""
Media = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Rule:
    """One row of a weight table.

    megatron: parameter name; ``{}`` stands for the global layer number.
    hf: the Hugging Face names that it is made of, with the same placeholder.
    tied: the parameter is a second copy of a tensor that another rule owns: loaded, never exported.
    alias: a second name under which some checkpoints store the same tensor.
    layers: the global layer numbers that have it; None: every layer.
    """

    megatron: str
    hf: tuple[str, ...]
    layout: Layout
    tied: bool = False
    alias: str | None = None
    layers: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Encoder:
    """A frozen tower beside the decoder: one modality.

    tower: builds it from config.json with transformers' own class.
    encode: (tower, media tensors concatenated over samples) -> features [placeholder tokens, hidden].
    media: keys of Sample.media that ``encode`` takes.
    token: key of config.json with the id of its placeholder token.
    prefix: how its names start in the checkpoint; the rest are the tower's own names.
    """

    tower: Callable[[HFConfig], Module]
    encode: Callable[[Module, Mapping[str, Tensor]], Tensor]
    media: tuple[str, ...]
    token: str
    prefix: str


@runtime_checkable
class ModelProvider(Protocol):
    """A spec's return value that builds the whole model itself instead of naming layers.

    A provider with towers has them by name as ``encoders`` (see ``HasEncoders``). One that takes ``vp_stage`` is told
    the virtual pipeline stage, None without any.
    """

    def __call__(self, pre_process: bool, post_process: bool) -> Any:
        """The MegatronModule of one pipeline stage, with or without embedding (pre) and output layer (post)."""


@runtime_checkable
class HasEncoders(Protocol):
    """A model provider with towers; a built first stage keeps each under ``encoders.<name>``."""

    @property
    def encoders(self) -> Mapping[str, Encoder]:
        """The towers by name."""


@runtime_checkable
class TakesHead(Protocol):
    """A model whose forward takes ``head``: called on the last stage in the place of the output layer.

    Its arguments are the last norm's output [S, B, hidden] and the output layer's weight [vocabulary, hidden], this
    rank's parts of them. A model without it gives the logits of all places.
    """

    @property
    def takes_head(self) -> bool:
        """Whether this one does, as it was configured."""


Positions = Callable[[HFConfig, Sequence[int], Media], NDArray[np.int64]]


def text_positions(hf: HFConfig, ids: Sequence[int], media: Media) -> NDArray[np.int64]:
    """Rotary positions [3, S] of a model without media: one a token, the same on all three axes."""
    return np.broadcast_to(np.arange(len(ids)), (3, len(ids)))


def text_part(hf: HFConfig) -> HFConfig:
    """The decoder's part of config.json: ``text_config``, or all of it in models of text and in older files."""
    part: HFConfig = hf.get("text_config") or hf
    return part


def text_rope(hf: HFConfig) -> Rope:
    """Rotary positions of the decoder, whole heads turning unless config.json says otherwise."""
    return rope_of(text_part(hf))


@dataclass(frozen=True)
class Family:
    """One model family.

    architectures: names in config.json that it serves.
    transformer: config.json -> TransformerConfig keywords.
    gpt: config.json -> GPTModel keywords, ``vocab_size`` unpadded.
    rules: config.json -> weight table of the decoder (encoders map name by name).
    positions: (config.json, ids [S], media) -> rotary positions [3, S]. Decoders take them from the batch (Megatron's
        "mrope"), so that samples may share a prompt within one row.
    encoders: the towers that its spec can build, by name.
    rope: config.json -> rotary positions of the decoder.
    legacy: how names start in this table -> how they start in checkpoints of the older naming, where there is one.
    carried: config.json -> how names of tensors start that some checkpoints have and the model does not run: neither
        loaded nor synced, and saved as they were.
    """

    architectures: tuple[str, ...]
    transformer: Callable[[HFConfig], dict[str, Any]]
    gpt: Callable[[HFConfig], dict[str, Any]]
    rules: Callable[[HFConfig], tuple[Rule, ...]]
    positions: Positions = text_positions
    encoders: Mapping[str, Encoder] = field(default_factory=dict)
    rope: Callable[[HFConfig], Rope] = text_rope
    legacy: Mapping[str, str] = field(default_factory=dict)
    carried: Callable[[HFConfig], tuple[str, ...]] = lambda hf: ()

    def check(self, hf: HFConfig) -> None:
        """Raises ComponentError when config.json names no architecture of this family, or quantised weights."""
        names = hf.get("architectures") or []
        if not set(names) & set(self.architectures):
            raise ComponentError(
                f"config.json says architectures={list(names)}, this family serves {list(self.architectures)}; "
                "name the family that fits in model.family, or auto"
            )
        refuse(hf, ("quantization_config",), "the trainer takes plain weights; save the checkpoint without")

    def named_as(
        self, names: Set[str], rules: Sequence[Rule], encoders: Mapping[str, Encoder]
    ) -> tuple[tuple[Rule, ...], dict[str, Encoder]]:
        """The weight table and the towers, in the older naming if that is what a checkpoint's ``names`` follow."""
        prefixes = self.legacy
        if not prefixes or any(name.startswith(tuple(prefixes)) for name in names):
            return tuple(rules), dict(encoders)

        def old(name: str) -> str:
            found = next((new for new in prefixes if name.startswith(new)), "")
            return prefixes[found] + name.removeprefix(found) if found else name

        renamed = {key: replace(encoder, prefix=old(encoder.prefix)) for key, encoder in encoders.items()}
        return tuple(replace(rule, hf=tuple(map(old, rule.hf))) for rule in rules), renamed


def load_family(name: str, hf: HFConfig | None = None) -> Family:
    """The ``FAMILY`` of ``components.models.<name>``; for ``auto`` the one that config.json's architectures ask for.

    Raises ComponentError when there is none.
    """
    if name == AUTO:
        name = family_name((hf or {}).get("architectures") or [])
    module = f"components.models.{name}"
    try:
        found = getattr(importlib.import_module(module), "FAMILY", None) if name.isidentifier() else None
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        found = None
    if not isinstance(found, Family):
        raise ComponentError(
            f"model.family={name}: {module} defines no FAMILY; see components/models for those there are"
        )
    return found


def require(hf: HFConfig, wanted: Mapping[str, object], why: str) -> None:
    """Raises ComponentError unless each key of ``wanted`` that config.json has holds the wanted value."""
    wrong = [f"{key}={hf[key]!r} (need {value!r})" for key, value in wanted.items() if hf.get(key, value) != value]
    if wrong:
        raise ComponentError(f"config.json: {', '.join(wrong)}: {why}")


SHAPE = (
    *("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "rms_norm_eps", "vocab_size"),
    "max_position_embeddings",
)
"""What every decoder's part of config.json must say."""


def needed(hf: HFConfig, keys: Sequence[str]) -> None:
    """Raises ComponentError unless config.json has all the ``keys``."""
    if missing := [key for key in keys if hf.get(key) is None]:
        raise ComponentError(f"config.json has no {', '.join(missing)}; save the checkpoint with transformers 5")


def refuse(hf: HFConfig, keys: Sequence[str], why: str) -> None:
    """Raises ComponentError when config.json turns one of ``keys`` on."""
    if wrong := [f"{key}={hf[key]!r}" for key in keys if hf.get(key)]:
        raise ComponentError(f"config.json: {', '.join(wrong)}: {why}")


def dense_transformer(text: HFConfig) -> dict[str, Any]:
    """TransformerConfig keywords of a gated, RMS-normed, group-query decoder, from its part of config.json.

    Raises ComponentError for missing keys and for what no decoder here has: other activations, dropout, windows.
    """
    from torch.nn.functional import silu

    needed(text, SHAPE)
    require(text, {"hidden_act": "silu"}, "the decoder is built with SwiGLU")
    refuse(text, ("attention_dropout",), "the trainer uses no dropout; set it to 0")
    refuse(text, ("use_sliding_window",), "attention is always over all that came before")
    if windows := sorted(set(text.get("layer_types") or ()) - {"full_attention"}):
        raise ComponentError(f"config.json: layer_types has {windows}: attention is always over all that came before")
    heads = text["num_attention_heads"]
    return {
        "num_layers": text["num_hidden_layers"],
        "hidden_size": text["hidden_size"],
        "ffn_hidden_size": text["intermediate_size"],
        "num_attention_heads": heads,
        "num_query_groups": key_value_heads(text),
        "kv_channels": text.get("head_dim") or text["hidden_size"] // heads,
        "layernorm_epsilon": text["rms_norm_eps"],
        "normalization": "RMSNorm",
        "activation_func": silu,
        "gated_linear_unit": True,
        "add_bias_linear": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }


def key_value_heads(text: HFConfig) -> int:
    """Key-value heads, one a query head where config.json names none."""
    return int(text.get("num_key_value_heads") or text["num_attention_heads"])


def output_rule(tied: bool, embedding: str, vocab: Layout) -> Rule:
    """The output layer's row: its own tensor, or the embedding's when the checkpoint ties them."""
    if tied:
        return Rule("output_layer.weight", (embedding,), vocab, tied=True, alias="lm_head.weight")
    return Rule("output_layer.weight", ("lm_head.weight",), vocab)


def rotary(text: HFConfig, rope: Rope | None = None) -> dict[str, Any]:
    """GPTModel keywords of the vocabulary and of rotary positions that come with the batch (Megatron's "mrope").

    rope: where it is not the one that ``rope_of`` reads from ``text`` alone.
    """
    rope = rope or rope_of(text)
    head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    return {
        "vocab_size": text["vocab_size"],
        "max_sequence_length": text["max_position_embeddings"],
        "position_embedding_type": "mrope",
        "rotary_base": rope.theta,
        "rotary_percent": rope.channels / head_dim,
    }
