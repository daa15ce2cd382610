"""The weight map and the way of its buckets: owners, non-gated layers, gathering beside sending."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator, Sequence

import pytest
import torch

from components.megatron.platform import load_platform
from components.megatron.sending import Sender
from components.megatron.weights import Entry, buckets, check_owners
from components.models.layouts import Gated, Split, Vocab
from slime_launch.errors import ComponentError


def entry(name: str, stage: int, tied: bool = False) -> Entry:
    return Entry(name, ("model.embed_tokens.weight",), Vocab(8), (8, 4), stage, stage, tied, False)


def test_a_name_of_two_stages_must_be_declared_tied() -> None:
    check_owners([entry("embedding.word_embeddings.weight", 0), entry("output_layer.weight", 1, tied=True)])
    with pytest.raises(ComponentError) as caught:
        check_owners([entry("embedding.word_embeddings.weight", 0), entry("output_layer.weight", 1)])
    for part in ("model.embed_tokens.weight", "stage 0", "stage 1", "embedding.word_embeddings", "output_layer"):
        assert part in str(caught.value)


@pytest.mark.parametrize("shape", [(8, 3), (8,)], ids=["weight", "bias"])
def test_only_a_gated_layer_is_recut(shape: tuple[int, ...]) -> None:
    """A plain MLP's first linear, as in a tower inside a split model, is its ranks' parts one after another."""
    whole = torch.arange(float(torch.Size(shape).numel())).view(shape)
    plain = [Split(0).shard([whole], rank, 2) for rank in range(2)]
    gated = [Gated(merged=True).shard([whole], rank, 2) for rank in range(2)]
    assert torch.equal(torch.cat(plain), whole) and torch.equal(Split(0).join(plain)[0], whole)
    assert not torch.equal(torch.cat(gated), whole) and torch.equal(Gated(merged=True).join(gated)[0], whole)
    assert not torch.equal(Gated(merged=True).join(plain)[0], whole)


@pytest.mark.parametrize("prefix", ["", "language_model."])
def test_layers_are_numbered_over_all_stages_with_or_without_a_prefix(prefix: str) -> None:
    load_platform("cpu").install()
    from components.megatron.build import shifted

    name = prefix + "decoder.layers.1.mlp.experts.local_experts.2.linear_fc1.weight"
    assert shifted(name, 4, 8) == prefix + "decoder.layers.5.mlp.experts.local_experts.10.linear_fc1.weight"
    tower = "vision." + name
    assert shifted(tower, 4, 0) == tower


class SlowSink:
    """Sends a bucket only once the next one is being gathered, and knows how many buckets live meanwhile."""

    def __init__(self, wanted: threading.Semaphore, alive: weakref.WeakSet[torch.Tensor]) -> None:
        self.wanted, self.alive = wanted, alive
        self.names: list[str] = []
        self.versions: list[int | None] = []
        self.most = 0

    def connect(self) -> None: ...

    def begin(self) -> None: ...

    def send(self, bucket: Sequence[tuple[str, torch.Tensor]], version: int | None) -> None:
        assert version is not None or self.wanted.acquire(timeout=30), "the next bucket was not gathered meanwhile"
        self.most = max(self.most, len(self.alive))
        self.names += [name for name, _ in bucket]
        self.versions.append(version)

    def end(self) -> None: ...

    def close(self) -> None: ...


def test_one_bucket_is_gathered_while_one_is_sent_and_none_beyond() -> None:
    wanted, count = threading.Semaphore(0), 12
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()

    def gathered() -> Iterator[tuple[str, torch.Tensor]]:
        for number in range(count):
            gc.collect()
            tensor = torch.zeros(4)
            alive.add(tensor)
            # Two tensors make a bucket; its second one is gathered after the one before went off.
            if number > 2 and number % 2:
                wanted.release()
            yield str(number), tensor
        wanted.release()

    sender, sink = Sender(), SlowSink(wanted, alive)
    sender.connect([sink])
    sender.send(buckets(gathered(), limit_bytes=32), version=3)
    assert sink.names == [str(number) for number in range(count)]
    assert sink.versions == [None] * (count // 2 - 1) + [3]
    assert sink.most <= 5, "two buckets and the tensor that closed the second"


class BrokenSink(SlowSink):
    def send(self, bucket: Sequence[tuple[str, torch.Tensor]], version: int | None) -> None:
        raise ComponentError("the engine is gone")


def test_a_send_that_fails_ends_the_update() -> None:
    sender = Sender()
    sender.connect([BrokenSink(threading.Semaphore(0), weakref.WeakSet())])
    with pytest.raises(ComponentError, match="the engine is gone"):
        sender.send(buckets(((str(n), torch.zeros(4)) for n in range(4)), limit_bytes=16), version=1)
