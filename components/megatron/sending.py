"""The trainer's weights on their way to the engines."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from slime_launch.interfaces import WeightSink
from slime_launch.types import Metrics

if TYPE_CHECKING:
    from torch import Tensor

    Bucket = list[tuple[str, Tensor]]


class Sender:
    """Sends every bucket to every engine: one bucket is on its way while the next is gathered, never a third."""

    def __init__(self) -> None:
        self._sinks: list[WeightSink] = []

    def connect(self, sinks: Iterable[WeightSink]) -> None:
        """Join each engine's transfer group."""
        for sink in sinks:
            sink.connect()
            self._sinks.append(sink)

    def send(self, buckets: Iterable[tuple[Bucket, bool]], version: int) -> Metrics:
        """One update of every engine. Returns ``perf/update_weights_*``; runs through ``buckets`` without engines too.

        buckets: each with whether it is the last, which the version goes with. Gathering a split weight is collective,
            so every rank has to run through them; it goes on in this thread while another one sends.
        """
        began, sent = time.perf_counter(), 0
        for sink in self._sinks:
            sink.begin()
        with ThreadPoolExecutor(1, thread_name_prefix="weights") as courier:
            under_way: Future[None] | None = None
            for bucket, last in buckets:
                sent += sum(tensor.nbytes for _, tensor in bucket)
                if under_way is not None:
                    under_way.result()
                under_way = courier.submit(self._pass_on, bucket, version if last else None)
            if under_way is not None:
                under_way.result()
        for sink in self._sinks:
            sink.end()
        seconds = time.perf_counter() - began
        return {"perf/update_weights_time": seconds, "perf/update_weights_mb_per_s": sent / 2**20 / seconds}

    def close(self) -> None:
        """Leave the groups."""
        while self._sinks:
            self._sinks.pop().close()

    def _pass_on(self, bucket: Bucket, version: int | None) -> None:
        for sink in self._sinks:
            sink.send(bucket, version)
