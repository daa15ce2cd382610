"""Rules about how the trainer cuts the model over ranks, and in which numbers it trains."""

from __future__ import annotations

from collections.abc import Iterator

from slime_launch.checks.facts import Facts, Rule
from slime_launch.errors import Problem

KEY = "trainer.parallel"
NUM_EXPERTS = ("num_experts", "n_routed_experts")
CUDA_ONLY = {
    f"{KEY}.sp": "torch's norms have no sequence-parallel form on CPU",
    f"{KEY}.ep": "Megatron-Core 0.16.1 moves tokens between experts on CUDA streams",
    f"{KEY}.cp": "context parallelism needs Transformer Engine, which is CUDA's",
    "trainer.optim.distributed": "Megatron-Core 0.16.1's distributed optimizer wants CUDA tensors",
    "trainer.precision": "torch multiplies bfloat16 slowly and inexactly on CPU; weights train in float32 there",
}


def cpu_serves_it(f: Facts) -> Iterator[Problem]:
    """What needs CUDA is refused on CPU, with the reason."""
    parallel, trainer = f.config.trainer.parallel, f.config.trainer
    given: dict[str, object] = {
        f"{KEY}.sp": parallel.sp,
        f"{KEY}.ep": parallel.ep if parallel.ep > 1 else None,
        f"{KEY}.cp": parallel.cp if parallel.cp > 1 else None,
        "trainer.optim.distributed": trainer.optim.distributed,
        "trainer.precision": trainer.precision if trainer.precision == "bfloat16" else None,
    }
    off = {f"{KEY}.ep": "1", f"{KEY}.cp": "1", "trainer.precision": "auto"}
    for key, value in given.items() if f.device == "cpu" else ():
        if value:
            yield Problem(key, value, CUDA_ONLY[key], f"set it to {off.get(key, 'false')}, or train on GPUs")


def sequences_stay_whole(f: Facts) -> Iterator[Problem]:
    """Batches are not cut along the sequence, on any device."""
    cp = f.config.trainer.parallel.cp
    if cp > 1 and f.device == "cuda":
        reason = "the trainer's batches are not cut along the sequence"
        yield Problem(f"{KEY}.cp", cp, reason, "set it to 1; tp with sp=true also splits activations")


def sequence_parallel_has_ranks(f: Facts) -> Iterator[Problem]:
    """Sequence parallelism is tensor-parallel ranks sharing the sequence; experts on such ranks cannot do without."""
    parallel = f.config.trainer.parallel
    if parallel.sp and parallel.tp == 1:
        yield Problem(f"{KEY}.sp", True, "trainer.parallel.tp=1 leaves nobody to share the sequence with", "raise tp")
    if f.device == "cuda" and _experts(f) and parallel.tp > 1 and not parallel.sp:
        reason = "Megatron trains experts on tensor-parallel ranks only if these share the sequence"
        yield Problem(f"{KEY}.sp", False, reason, "set it to true")


def experts_divide(f: Facts) -> Iterator[Problem]:
    """Expert-parallel ranks are data-parallel ranks, and share the experts evenly."""
    parallel, experts = f.config.trainer.parallel, _experts(f)
    if parallel.ep == 1:
        return
    if not experts:
        yield Problem(f"{KEY}.ep", parallel.ep, "the model has no experts", "set it to 1")
    elif experts % parallel.ep:
        reason = f"does not divide the model's {experts} experts"
        yield Problem(f"{KEY}.ep", parallel.ep, reason, f"give a divisor of {experts}")
    if parallel.dp % parallel.ep:
        reason = f"does not divide trainer.parallel.dp={parallel.dp}, whose ranks share the experts"
        yield Problem(f"{KEY}.ep", parallel.ep, reason, f"give a divisor of {parallel.dp}")


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
    cpu_serves_it, sequences_stay_whole, sequence_parallel_has_ranks, experts_divide, virtual_stages_divide,
)  # fmt: skip
