"""Finished samples for the reward tests, and parts that go wrong."""

from slime_launch.types import Prompt, Sample, Status


def sample(response, label="7", index=0, status=Status.COMPLETED, metadata=None, source="digits"):
    prompt = Prompt(messages=[{"role": "user", "content": "?"}], label=label, source=source, metadata=metadata or {})
    return Sample(
        group=3,
        index=index,
        prompt=prompt,
        prompt_text="?",
        prompt_ids=[1],
        response=response,
        response_ids=[1],
        logprobs=[0.0],
        loss_mask=[1],
        status=status,
        weight_versions=[0],
    )
