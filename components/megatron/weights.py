"""The weight map at work: a Hugging Face checkpoint into this rank's shard, and all ranks' shards back out.

Import, sync and save all read the family's one table (``Family.rules``); the towers map name by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.models.base import Encoder, Rule
from components.models.layouts import Layout, Replicated
from slime_launch.errors import ComponentError

if TYPE_CHECKING:
    from torch import Tensor

    from components.megatron.checkpoint import Checkpoint

INNER = "language_model."
"""How the decoder's names may start in a model that a provider builds."""
LAYER = re.compile(r"(?:(?<=^decoder\.layers\.)|(?<=^language_model\.decoder\.layers\.))\d+(?=\.)")
OUTPUT = "output_layer."
"""Of an actor the vocabulary's logits; of a critic its value head, which no Hugging Face checkpoint has."""
LISTED = 20
"""Names that an error lists at most; a model with experts has tens of thousands."""


@dataclass(frozen=True)
class Entry:
    """One Megatron tensor of one pipeline stage.

    name: with global layer and expert numbers. hf: its Hugging Face names. shape: of a rank's shard. stage: pipeline
    rank. owner: global rank of the first holder, which is the first of its tensor-parallel ranks. tied, layout: as in
    Rule.
    """

    name: str
    hf: tuple[str, ...]
    layout: Layout
    shape: tuple[int, ...]
    stage: int
    owner: int
    tied: bool
    encoder: bool
    dtype: Any = None


class WeightMap:
    """The mapping of one model on one rank. Every method that says *collective* must be called by all ranks."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        rules: Sequence[Rule],
        encoders: Mapping[str, Encoder],
        layers: int,
        carried: tuple[str, ...] = (),
        critic: bool = False,
    ) -> None:
        """Collective. ``tensors`` are this rank's, by global name; ``layers`` is the whole model's number of layers.

        carried: as in Family, for one config.json. critic: the output layer is a value head: neither loaded, sent nor
            exported; the checkpoint's own output layer is carried.
        """
        if critic:
            carried += tuple(name for rule in rules if _outputs(rule) for name in (rule.alias, *rule.hf) if name)
            rules = [rule for rule in rules if not _outputs(rule)]
            kept = tuple(name for rule in rules for name in rule.hf)
            carried = tuple(name for name in carried if name not in kept)
        self._critic = critic
        self.tensors = tensors
        self.encoders = encoders
        self._prefixes = carried
        self._carried: dict[str, Callable[[str], Tensor]] = {}
        self.aliases = {rule.alias: rule.hf[0] for rule in rules if rule.alias}
        self._known = expand(rules, layers)
        self._local = self._entries(rules)
        self._all = self._gather()

    def _entries(self, rules: Sequence[Rule]) -> tuple[Entry, ...]:
        from megatron.core import parallel_state as ps

        table = {rule.megatron: rule for rule in rules}
        stage, owner = ps.get_pipeline_model_parallel_rank(), ps.get_tensor_model_parallel_src_rank()
        entries, strays = [], []
        for name, tensor in self.tensors.items():
            if self._critic and name.removeprefix(INNER).startswith(OUTPUT):
                continue
            if found := self._rule(name, table):
                hf, layout, tied, encoder = found
                entries.append(Entry(name, hf, layout, tuple(tensor.shape), stage, owner, tied, encoder, tensor.dtype))
            else:
                strays.append(name)
        if strays:
            raise ComponentError(
                f"the family's weight table has no rule for the model's {strays}; add them to its weights.py"
            )
        return tuple(entries)

    def _rule(self, name: str, table: Mapping[str, Rule]) -> tuple[tuple[str, ...], Layout, bool, bool] | None:
        for key, encoder in self.encoders.items():
            if name.startswith(f"encoders.{key}."):
                return (encoder.prefix + name.removeprefix(f"encoders.{key}."),), Replicated(), False, True
        layer = LAYER.search(name)
        rule = table.get(LAYER.sub("{}", name).removeprefix(INNER))
        number = layer[0] if layer else ""
        if rule is None or (layer and rule.layers is not None and int(number) not in rule.layers):
            return None
        return tuple(hf.format(number) for hf in rule.hf), rule.layout, rule.tied, False

    def _gather(self) -> tuple[Entry, ...]:
        import torch.distributed as dist

        everywhere: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, self._local)
        merged: dict[tuple[int, str], Entry] = {}
        for entry in (entry for rank in everywhere for entry in rank):
            merged.setdefault((entry.stage, entry.name), entry)
        entries = tuple(merged.values())
        check_owners(entries)
        return entries

    def load(self, checkpoint: Checkpoint) -> None:
        """Copy this rank's shard of each tensor in; one full tensor is in memory at a time.

        Raises ComponentError that lists every name that the checkpoint lacks or has beyond the model's, and for a shape
        that does not fit.
        """
        import torch
        from megatron.core import parallel_state as ps

        self._check_names(checkpoint)
        self._check_aliases(checkpoint)
        rank, size = ps.get_tensor_model_parallel_rank(), ps.get_tensor_model_parallel_world_size()
        with torch.no_grad():
            for entry in self._local:
                target = self.tensors[entry.name]
                shard = entry.layout.shard([checkpoint.get(name) for name in entry.hf], rank, size)
                if shard.shape != target.shape:
                    raise ComponentError(
                        f"{entry.hf}: the checkpoint gives {tuple(shard.shape)} for {entry.name}, the model has "
                        f"{tuple(target.shape)}; config.json and the weights do not belong together"
                    )
                target.copy_(shard)

    def _check_names(self, checkpoint: Checkpoint) -> None:
        wanted = self._known | {name for entry in self._all for name in entry.hf}
        missing, extra = wanted - checkpoint.names, checkpoint.names - wanted - set(self.aliases)
        carried = {name for name in extra if name.startswith(self._prefixes)}
        extra -= carried
        if missing or extra:
            raise ComponentError(
                f"checkpoint {checkpoint.folder} does not fit the model: missing {listed(missing)}, extra "
                f"{listed(extra)}; config.json and the weights do not belong together"
            )
        self._carried = dict.fromkeys(sorted(carried), checkpoint.get)

    def _check_aliases(self, checkpoint: Checkpoint) -> None:
        """Raises ComponentError where a checkpoint says that two tensors are one, and stores two."""
        for alias, twin in self.aliases.items():
            if alias in checkpoint.names and not checkpoint.get(alias).equal(checkpoint.get(twin)):
                raise ComponentError(
                    f"checkpoint {checkpoint.folder}: config.json ties {alias} to {twin}, and the two differ; set "
                    f"tie_word_embeddings=false there, or drop {alias}"
                )

    def export(self, encoders: bool) -> Iterator[tuple[str, Tensor]]:
        """Collective. (Hugging Face name, full tensor) on rank 0, nothing on the others; run it to its end.

        encoders: whether the towers' tensors are among them. A tensor may share memory with the live weights.
        """
        import torch.distributed as dist

        for entry in self._all:
            if entry.tied or (entry.encoder and not encoders):
                continue
            shards = self._bring(entry)
            if dist.get_rank() == 0:
                yield from zip(entry.hf, entry.layout.join(shards), strict=True)

    def export_as(self, names: Set[str]) -> Iterator[tuple[str, Tensor]]:
        """Collective. As ``export`` with the towers; tied tensors also under the second name if it is in ``names``.

        Last come the carried tensors as the loaded checkpoint has them, those in ``names``.
        """
        import torch.distributed as dist

        second = {twin: alias for alias, twin in self.aliases.items() if alias in names}
        for name, tensor in self.export(encoders=True):
            yield name, tensor
            if name in second:
                yield second[name], tensor
        for name, get in self._carried.items():
            if name in names and dist.get_rank() == 0:
                yield name, get(name)

    def _bring(self, entry: Entry) -> list[Tensor]:
        """The shards of one tensor on rank 0; an empty list on ranks that need not know."""
        import torch
        import torch.distributed as dist
        from megatron.core import parallel_state as ps

        here = ps.get_tensor_model_parallel_src_rank() == entry.owner
        ranks = ps.get_tensor_model_parallel_world_size() if entry.layout.sharded else 1
        shards: list[Tensor] = []
        if here:
            mine = self.tensors[entry.name].detach().contiguous()
            shards = [mine]
            if ranks > 1:
                shards = [torch.empty_like(mine) for _ in range(ranks)]
                dist.all_gather(shards, mine, group=ps.get_tensor_model_parallel_group())
        if entry.owner != 0 and dist.get_rank() == 0:
            some = next(iter(self.tensors.values()))
            shards = [torch.empty(entry.shape, dtype=entry.dtype, device=some.device) for _ in range(ranks)]
            for shard in shards:
                dist.recv(shard, entry.owner)
        elif dist.get_rank() == entry.owner != 0:
            for shard in shards:
                dist.send(shard, 0)
        return shards


def expand(rules: Sequence[Rule], layers: int) -> frozenset[str]:
    """Every Hugging Face name of a weight table over all layers."""
    every = range(layers)
    return frozenset(
        hf.format(layer)
        for rule in rules
        for layer in (every if rule.layers is None else rule.layers)
        for hf in rule.hf
    )


def listed(names: Set[str]) -> str:
    """The names in order, the first few of very many."""
    some = sorted(names)[:LISTED]
    return str(some) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def check_owners(entries: Iterable[Entry]) -> None:
    """Raises ComponentError when two tensors give the same Hugging Face name and none of them is declared tied."""
    owners: dict[str, Entry] = {}
    for entry in entries:
        for hf in () if entry.tied else entry.hf:
            other = owners.setdefault(hf, entry)
            if other is not entry:
                raise ComponentError(
                    f"{hf} is owned by pipeline stage {other.stage} ({other.name}) and by stage {entry.stage} "
                    f"({entry.name}); declare one of them tied in the family's weights.py"
                )


def _outputs(rule: Rule) -> bool:
    return rule.megatron.startswith(OUTPUT)


def buckets(
    tensors: Iterable[tuple[str, Tensor]], limit_bytes: float
) -> Iterator[tuple[list[tuple[str, Tensor]], bool]]:
    """(run of tensors of at most ``limit_bytes`` together, whether it is the last); a larger tensor travels alone."""
    bucket: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in tensors:
        if bucket and size + tensor.nbytes > limit_bytes:
            yield bucket, False
            bucket, size = [], 0
        bucket.append((name, tensor))
        size += tensor.nbytes
    if bucket:
        yield bucket, True
