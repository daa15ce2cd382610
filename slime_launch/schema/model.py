"""model: what is trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from slime_launch.schema.fields import Node, about


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What is trained; its shape is read from the checkpoint's config.json, never from here."""

    family: Annotated[str, about("Folder of components/models; auto: by config.json's architecture.")] = "auto"
    hf_checkpoint: Annotated[str | None, about("Hugging Face checkpoint folder; null makes the tiny stand-in.")] = None
    hf_config: Annotated[str | None, about("config.json to plan with; null takes the checkpoint's.")] = None
    spec: Annotated[Node, about("The callable layer spec.")] = field(default_factory=dict)
    freeze: Annotated[list[str], about("Patterns (regex search) of parameters that do not train.")] = field(
        default_factory=list
    )
    train_only: Annotated[
        list[str], about("Patterns (regex search) of the parameters that alone train; not beside freeze.")
    ] = field(default_factory=list)
    encoders: Annotated[dict[str, str], about("Encoders by name, with the prefix of their parameters.")] = field(
        default_factory=dict
    )
    transformer: Annotated[dict[str, Any], about("Megatron TransformerConfig fields set on top of the family's.")] = (
        field(default_factory=dict)
    )
    tiny: Annotated[Node, about("The component that makes the stand-in checkpoint.")] = field(default_factory=dict)
