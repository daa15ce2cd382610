"""From the trainer's settings to its running parts: the order in which Megatron wants to be set up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from components.megatron.checkpoint import Checkpoint
from components.models.base import Family, HFConfig, load_family
from slime_launch.targets import instantiate

if TYPE_CHECKING:
    from components.megatron.batches import Batcher
    from components.megatron.build import Built
    from components.megatron.config import ModelConfig
    from components.megatron.parts import Parts
    from components.megatron.trainer import MegatronTrainer


def build_parts(trainer: MegatronTrainer) -> Parts:
    """Collective. Join the world, build, load, freeze and wrap the model, make its optimizer."""
    from components.megatron.parts import Parts

    platform = trainer.platform
    checkpoint = Checkpoint(trainer.hf_checkpoint)
    hf = checkpoint.config
    family = load_family(trainer.family, hf)
    family.check(hf)
    platform.install()

    from components.megatron.build import build_model, freeze, wrap
    from components.megatron.config import model_config
    from components.megatron.head import Head
    from components.megatron.optim import Optimizer, check_optim
    from components.megatron.parallel import join_world
    from components.megatron.pipeline import communication
    from components.megatron.step import Stepper, takes_head
    from components.megatron.weights import WeightMap

    check_optim(trainer.optim)
    join_world(platform, trainer.rendezvous, trainer.rank, trainer.world_size, trainer.sizes, trainer.timeout_s)
    platform.seed(trainer.seed)
    config = model_config(
        family, hf, trainer.transformer, platform, trainer.sizes,
        hf_checkpoint=trainer.hf_checkpoint, precision=trainer.precision, critic=trainer.critic,
        recompute=trainer.recompute,
    )  # fmt: skip
    built = build_model(trainer.spec, config, critic=trainer.critic, seed=trainer.seed)
    rules, encoders = family.named_as(checkpoint.names, family.rules(hf), built.encoders)
    weights = WeightMap(built.tensors, rules, encoders, config.num_layers, family.carried(hf), critic=trainer.critic)
    weights.load(checkpoint)
    freeze(built.tensors, trainer.freeze, trainer.train_only)
    chunks = wrap(built.chunks, config, platform.device, trainer.optim["distributed"])
    algorithm = instantiate(trainer.algorithm)
    if not (trainer.critic or all(map(takes_head, chunks))):
        _tell_of_whole_logits(built)
    head = Head(family.gpt(hf)["vocab_size"], trainer.temperature, trainer.banned_tokens, trainer.logprob_chunk)
    return Parts(
        checkpoint=checkpoint,
        algorithm=algorithm,
        chunks=chunks,
        weights=weights,
        optimizer=Optimizer(chunks, trainer.optim, trainer.updates),
        batcher=_batcher(trainer, family, hf, built, config),
        stepper=Stepper(chunks, algorithm, head, communication(config)),
    )


def _tell_of_whole_logits(built: Built) -> None:
    print(
        f"trainer: {type(built.chunks[-1]).__name__} takes no head (components.models.base.TakesHead): the logits "
        "of all places are made at once, whatever trainer.logprob_chunk",
        flush=True,
    )


def _batcher(trainer: MegatronTrainer, family: Family, hf: HFConfig, built: Built, config: ModelConfig) -> Batcher:
    """What cuts samples for this rank's model."""
    from megatron.core import parallel_state

    from components.megatron.batches import Batcher
    from components.megatron.critic import decoder_of
    from components.megatron.cutting import Bounds
    from components.models.context import this_context

    context = this_context()
    return Batcher(
        family=family,
        hf=hf,
        encoders=built.encoders,
        bounds=Bounds(
            samples=trainer.micro_batch_size,
            tokens=trainer.max_tokens,
            # Plain "rope" counts places in the row, where a shared row repeats positions.
            share=getattr(decoder_of(built.chunks[0]), "position_embedding_type", None) == "mrope",
            multiple=trainer.sizes.pp if trainer.sizes.virtual else 1,
            hidden=config.hidden_size,
        ),
        device=trainer.platform.device,
        media=parallel_state.is_pipeline_first_stage(ignore_virtual=True),
        length_multiple=context.multiple * (trainer.sizes.tp if trainer.sizes.sp else 1),
        context=context,
    )
