"""A generate function: the model answers, and then is shown its answer again."""

from __future__ import annotations

from slime_launch.interfaces import Engine
from slime_launch.types import Sample, Status


async def second_thoughts(sample: Sample, engine: Engine, question: str = "Sure?") -> Sample | list[Sample]:
    """The answer and the second thought: two samples that train, of one rollout, which counts once in its group."""
    await engine.generate(sample)
    if sample.status is not Status.COMPLETED:
        return sample  # cut short; the launcher may ask to go on with it in a later step
    answer = {"role": "assistant", "content": sample.response}
    again = engine.part(sample, [*sample.prompt.messages, answer, {"role": "user", "content": question}])
    return [sample, await engine.generate(again)]
