"""Parts whose scores are written in the samples: ``metadata[key]`` is a number, or how to fail."""

import asyncio
import math
from typing import ClassVar

from slime_launch.types import Prompt, Sample

FAILURES = ("raise", "hang", "nan")


def scored(group=0, index=0, source="default", part=0, **scores):
    prompt = Prompt(messages=[], label="", source=source)
    return Sample(
        group=group, index=index, part=part, prompt=prompt, prompt_text="", prompt_ids=[1], metadata=dict(scores)
    )


async def told(sample, key):
    """The score, after as many failures as ``<key>_first`` lists."""
    first = sample.metadata.get(f"{key}_first")
    value = first.pop(0) if first else sample.metadata[key]
    if value == "raise":
        raise RuntimeError("no score today")
    if value == "hang":
        await asyncio.sleep(3600)
    return math.nan if value == "nan" else value


class Batch:
    """Fails as a whole when one of its samples does, but for a nan."""

    def __init__(self, key):
        self._key = key

    async def score(self, samples):
        return [await told(sample, self._key) for sample in samples]


class Single:
    """Counts how many it is asked for at once."""

    most = 0
    now = 0

    def __init__(self, key):
        self._key = key

    async def score_one(self, sample):
        Single.now += 1
        Single.most = max(Single.most, Single.now)
        try:
            await asyncio.sleep(0)
            return await told(sample, self._key)
        finally:
            Single.now -= 1


class Whole:
    """The place of each sample's score within its group, the lowest 0."""

    def __init__(self, key):
        self._key = key

    async def score_group(self, samples):
        values = [await told(sample, self._key) for sample in samples]
        return [float(sorted(values).index(value)) for value in values]


class Stubborn:
    """Takes no notice of being cancelled."""

    async def score(self, samples):
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                continue


class Lifelong:
    """Remembers what it was told."""

    said: ClassVar[list] = []

    async def score(self, samples):
        return [0.0] * len(samples)

    def begin_step(self, step):
        self.said.append(step)

    def connect(self, endpoints):
        self.said.append(dict(endpoints))

    async def close(self):
        self.said.append("closed")


class Stuck(Lifelong):
    """Cannot be closed."""

    async def close(self):
        raise OSError("stuck")


def node(kind, key="a", weight=1.0, **more):
    return {"_target_": f"{__name__}.{kind.__name__}", "key": key, "weight": weight, **more}
