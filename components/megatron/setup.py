"""From the trainer's settings to its running parts: the order in which Megatron wants to be set up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from components.megatron.checkpoint import Checkpoint
from components.models.base import load_family
from slime_launch.targets import instantiate

if TYPE_CHECKING:
    from components.megatron.trainer import MegatronTrainer, Parts


def build_parts(trainer: MegatronTrainer) -> Parts:
    """Collective. Join the world, build, load, freeze and wrap the model, make its optimizer."""
    from components.megatron.trainer import Parts

    platform = trainer.platform
    checkpoint = Checkpoint(trainer.hf_checkpoint)
    hf = checkpoint.config
    family = load_family(trainer.family, hf)
    family.check(hf)
    platform.install()

    from components.megatron.batches import Batcher
    from components.megatron.build import build_model, freeze, global_names, wrap
    from components.megatron.config import model_config
    from components.megatron.optim import Optimizer, check_optim
    from components.megatron.parallel import join_world
    from components.megatron.step import Stepper
    from components.megatron.weights import WeightMap

    check_optim(trainer.optim)
    join_world(
        platform, trainer.rendezvous, trainer.rank, trainer.world_size, trainer.tp, trainer.pp, trainer.timeout_s
    )
    platform.seed(trainer.seed)
    config = model_config(family, hf, trainer.transformer, platform, trainer.tp, trainer.pp)
    built = build_model(trainer.spec, config)
    tensors = global_names(built.model, config)
    rules, encoders = family.named_as(checkpoint.names, family.rules(hf), built.encoders)
    weights = WeightMap(tensors, rules, encoders, config.num_layers, family.carried(hf))
    weights.load(checkpoint)
    freeze(tensors, trainer.freeze)
    model = wrap(built.model, config, platform.device)
    algorithm = instantiate(trainer.algorithm)
    vocab = family.gpt(hf)["vocab_size"]
    return Parts(
        checkpoint=checkpoint,
        algorithm=algorithm,
        model=model,
        weights=weights,
        optimizer=Optimizer(model, trainer.optim, trainer.updates),
        batcher=Batcher(
            family=family,
            hf=hf,
            encoders=built.encoders,
            size=trainer.micro_batch_size,
            device=platform.device,
            # Plain "rope" counts places in the row, where a shared row repeats positions.
            share=getattr(built.model, "position_embedding_type", None) == "mrope",
        ),
        stepper=Stepper(model, algorithm, vocab, trainer.temperature, trainer.banned_tokens),
    )
