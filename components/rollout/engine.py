"""An engine as a generate function sees it: samples go in and come out longer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from components.rollout.client import Session
from components.rollout.prompts import Rendered, Renderer
from slime_launch.errors import ComponentError
from slime_launch.types import Sample, Status

_STATUS = {"stop": Status.COMPLETED, "length": Status.TRUNCATED, "abort": Status.ABORTED}


class SampleEngine:
    """slime_launch.interfaces.Engine for one sample.

    rendered: its prompt. sampling: SGLang's sampling_params.
    """

    def __init__(self, session: Session, renderer: Renderer, rendered: Rendered, sampling: Mapping[str, Any]) -> None:
        self._session, self._renderer, self._rendered = session, renderer, rendered
        self.sampling: Mapping[str, Any] = sampling

    async def generate(self, sample: Sample, **sampling: Any) -> Sample:
        """See ``slime_launch.interfaces.Engine``.

        Raises ComponentError for whatever is not a whole, consistent answer.
        """
        body: dict[str, Any] = {"sampling_params": {**self.sampling, **sampling}, "return_logprob": True}
        # images go with text: the engine expands the placeholders itself, and the lengths are compared afterwards
        if self._rendered.image_data:
            body |= {"text": self._rendered.text, "image_data": self._rendered.image_data}
        else:
            body["input_ids"] = self._rendered.ids
        _append(sample, (await self._session.generate(body))["meta_info"])
        sample.response = self.decode(sample.response_ids)
        return sample

    def encode(self, text: str) -> list[int]:
        """Ids of text, no special tokens added."""
        ids: list[int] = self._renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        return self._renderer.decode(list(ids))

    def continuation(self, sample: Sample, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """See ``slime_launch.interfaces.Engine``."""
        raise NotImplementedError


def _append(sample: Sample, meta: Mapping[str, Any]) -> None:
    if meta["finish_reason"]["type"] == "abort" and not meta.get("completion_tokens"):
        sample.status = Status.ABORTED  # before the engine began: it counts no prompt tokens either
        return
    counted, mine = meta["prompt_tokens"], len(sample.prompt_ids)
    if counted != mine:
        raise ComponentError(
            f"the engine counts {counted} prompt tokens and the trainer {mine}: "
            f"tokenizer or image processor differ; prompt {sample.prompt_text!r}"
        )
    pairs = meta["output_token_logprobs"]
    if len(pairs) != meta["completion_tokens"]:
        raise ComponentError(f"the engine made {meta['completion_tokens']} tokens and sent {len(pairs)} logprobs")
    ids, logprobs = [int(pair[1]) for pair in pairs], [float(pair[0]) for pair in pairs]
    sample.add_sampled(ids, logprobs, int(meta["weight_version"]))
    sample.status = _STATUS.get(meta["finish_reason"]["type"], Status.ABORTED)
