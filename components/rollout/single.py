"""One question, one answer."""

from __future__ import annotations

from slime_launch.interfaces import Engine
from slime_launch.types import Sample


class SingleTurn:
    """slime_launch.interfaces.Generate: one request, or one more where the sample was cut short."""

    async def __call__(self, sample: Sample, engine: Engine) -> Sample:
        """The sample with its answer."""
        return await engine.generate(sample)
