"""Rules about how the trainer cuts the model over ranks, and in which numbers it trains."""

from __future__ import annotations

from collections.abc import Iterator

from slime_launch.checks.facts import Facts, Rule
from slime_launch.errors import Problem

KEY = "trainer.parallel"
NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # transformers 5 writes the second
CUDA_ONLY = {
    "trainer.optim.distributed": "Megatron-Core 0.16.1's distributed optimizer wants CUDA tensors",
    "trainer.precision": "torch multiplies bfloat16 slowly and inexactly on CPU; weights train in float32 there",
}

WHOLE_ROWS = {"window_size": None, "softmax_type": "vanilla"}
"""Fields of Megatron's TransformerConfig -> the value at which ranks can share rows."""


def cpu_serves_it(f: Facts) -> Iterator[Problem]:
    """What needs CUDA is refused on CPU, with the reason."""
    trainer = f.config.trainer
    given: dict[str, object] = {
        "trainer.optim.distributed": trainer.optim.distributed,
        "trainer.precision": trainer.precision if trainer.precision == "bfloat16" else None,
    }
    off = {"trainer.precision": "auto"}
    for key, value in given.items() if f.device == "cpu" else ():
        if value:
            yield Problem(key, value, CUDA_ONLY[key], f"set it to {off.get(key, 'false')}, or train on GPUs")


def shared_rows_are_attended_whole(f: Facts) -> Iterator[Problem]:
    """Of attention, the trainer computes the causal kind alone over ranks that share rows."""
    given, cp = f.config.model.transformer, f.config.trainer.parallel.cp
    for name, plain in WHOLE_ROWS.items() if cp > 1 else ():
        if given.get(name, plain) != plain:
            reason = f"is computed on whole rows only, and trainer.parallel.cp={cp} ranks share each row"
            yield Problem(f"model.transformer.{name}", given[name], reason, f"take it out, or set {KEY}.cp to 1")


def sequence_parallel_has_ranks(f: Facts) -> Iterator[Problem]:
    """Sequence parallelism is tensor-parallel ranks sharing the sequence; experts on such ranks cannot do without."""
    parallel = f.config.trainer.parallel
    if parallel.sp and parallel.tp == 1:
        yield Problem(f"{KEY}.sp", True, "trainer.parallel.tp=1 leaves nobody to share the sequence with", "raise tp")
    if _experts(f) and parallel.tp > 1 and not parallel.sp and (f.device == "cuda" or parallel.ep > 1):
        reason = "Megatron trains experts on tensor-parallel ranks only if these share the sequence"
        yield Problem(f"{KEY}.sp", False, reason, "set it to true")


def experts_divide(f: Facts) -> Iterator[Problem]:
    """Expert-parallel ranks are those that hold different tokens, and share the experts evenly."""
    parallel, experts = f.config.trainer.parallel, _experts(f)
    if parallel.ep == 1:
        return
    if not experts:
        yield Problem(f"{KEY}.ep", parallel.ep, "the model has no experts", "set it to 1")
    elif experts % parallel.ep:
        reason = f"does not divide the model's {experts} experts"
        yield Problem(f"{KEY}.ep", parallel.ep, reason, f"give a divisor of {experts}")
    ranks = parallel.dp * parallel.cp
    if ranks % parallel.ep:
        reason = f"does not divide trainer.parallel.dp x cp = {ranks}, whose ranks share the experts"
        yield Problem(f"{KEY}.ep", parallel.ep, reason, f"give a divisor of {ranks}")


def virtual_stages_divide(f: Facts) -> Iterator[Problem]:
    """Layers divide over virtual stages, of which there are several only with several stages."""
    parallel, layers = f.config.trainer.parallel, f.text.get("num_hidden_layers")
    if parallel.vpp == 1:
        return
    uneven = [
        name
        for name in ("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage")
        if name in f.config.model.transformer
    ]
    stages = parallel.pp * parallel.vpp
    if parallel.pp == 1:
        yield Problem(f"{KEY}.vpp", parallel.vpp, "trainer.parallel.pp=1 has no stages to interleave", "raise pp")
    elif uneven:
        yield Problem(f"{KEY}.vpp", parallel.vpp, "virtual stages are of one size", f"take out {', '.join(uneven)}")
    elif isinstance(layers, int) and layers % stages:
        reason = f"pp x vpp = {stages} does not divide num_hidden_layers={layers} of the model"
        yield Problem(f"{KEY}.vpp", parallel.vpp, reason, f"make pp x vpp a divisor of {layers}")


def _experts(f: Facts) -> int:
    """Routed experts of a layer; 0 in a dense model."""
    return next((int(f.text[name]) for name in NUM_EXPERTS if f.text.get(name)), 0)


RULES: tuple[Rule, ...] = (
    cpu_serves_it, shared_rows_are_attended_whole, sequence_parallel_has_ranks, experts_divide, virtual_stages_divide,
)  # fmt: skip
