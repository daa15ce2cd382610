"""An engine as a generate function sees it: samples go in and come out longer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from components.rollout.answers import Asked
from components.rollout.media import count_images, data_uri
from components.rollout.prompts import Rendered, Renderer
from components.rollout.sampling import check_request
from components.rollout.turns import read_images, short_response, split_images
from slime_launch.errors import ComponentError
from slime_launch.interfaces import Images
from slime_launch.types import Prompt, Sample, Status, Turn

T = TypeVar("T")


class Session(Protocol):
    """Where the requests of one sample go, e.g. ``components.rollout.client.Session``."""

    async def generate(self, body: Mapping[str, Any], read: Callable[[dict[str, Any]], T]) -> T:
        """What ``read`` makes of SGLang's answer to one ``/generate`` request.

        Where it raises BadAnswer, the request may be made again.
        """


class SampleEngine:
    """slime_launch.interfaces.Engine for one rollout.

    rendered: its prompt. sampling: SGLang's sampling_params. vocabulary: the model's, in tokens. images: reads those
    of later turns. trains: what is sampled is trained on. images_sent: images in requests that an engine answered.

    Every request carries the whole sample so far as tokens, and its images: ids with one placeholder an image, which
    the engine expands. Nothing is tokenised twice; the counts are compared each time.
    """

    def __init__(
        self,
        session: Session,
        renderer: Renderer,
        rendered: Rendered,
        sampling: Mapping[str, Any],
        vocabulary: int | None = None,
        images: Images | None = None,
        trains: bool = False,
    ) -> None:
        self._session, self._renderer, self._rendered, self._images = session, renderer, [rendered], images
        self._vocabulary, self._trains = vocabulary, trains
        self.sampling: Mapping[str, Any] = sampling
        self.images_sent = 0

    async def generate(self, sample: Sample, **sampling: Any) -> Sample:
        """See ``slime_launch.interfaces.Engine``.

        Raises ComponentError for a response longer than its budget, for sampling parameters that are the launcher's own
        or, in training, that the trainer does without, and for whatever is not a whole, consistent answer.
        """
        check_request(sampling, self.sampling, self._trains)
        wanted = {**self.sampling, **sampling}
        left = int(wanted["max_new_tokens"]) - len(sample.response_ids)
        if left < 0:
            raise ComponentError(
                f"{_name(sample)}: its response has {len(sample.response_ids)} tokens and max_new_tokens="
                f"{wanted['max_new_tokens']} are allowed; a generate function must leave room before it adds any"
            )
        if left == 0:
            sample.status = Status.TRUNCATED
            return sample
        body: dict[str, Any] = {"sampling_params": wanted | {"max_new_tokens": left}, "return_logprob": True}
        body["input_ids"], image_data = self._request(sample)
        if image_data:
            body["image_data"] = image_data
        tokens = len(sample.prompt_ids) + len(sample.response_ids)
        asked = Asked(_name(sample), tokens, bool(image_data), self._vocabulary, sample.prompt_text)
        answer = await self._session.generate(body, asked.read)
        if answer.sent:
            self.images_sent += len(image_data)
        for run in answer.runs:
            sample.add_sampled(*run)
        sample.status = answer.status
        sample.response = self.decode(sample.response_ids)
        return sample

    def part(self, sample: Sample, messages: Sequence[Mapping[str, Any]]) -> Sample:
        """See ``slime_launch.interfaces.Engine``."""
        images = sample.prompt.images if count_images(messages) else ()
        prompt = replace(sample.prompt, messages=[dict(message) for message in messages], images=images)
        rendered = self._renderer.render(prompt)
        self._rendered.append(rendered)
        return new_sample(rendered, sample.group, sample.index)

    def encode(self, text: str) -> list[int]:
        """Ids of text, no special tokens added."""
        return self._renderer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        return self._renderer.decode(ids)

    async def continuation(self, sample: Sample, messages: Sequence[Mapping[str, Any]]) -> Turn:
        """See ``slime_launch.interfaces.Engine``; ``components.rollout.chat`` says what a template must be like."""
        if not sample.response_ids:
            raise ComponentError(f"{_name(sample)}: it has no assistant turn yet that messages could follow")
        bare, refs = split_images(messages)
        pictures = await read_images(self._images, refs)
        return self._renderer.continuation(sample.response_ids[-1], bare, sample.prompt, pictures)

    def _request(self, sample: Sample) -> tuple[list[int], list[str]]:
        """The sample's ids with one placeholder an image, and its images."""
        later = [data_uri(image.file) for image in sample.images]
        if not (sample.prompt.images or sample.media):
            return sample.prompt_ids + short_response(sample), later
        began = self._began(sample)
        return began.request_ids + short_response(sample), [*began.image_data, *later]

    def _began(self, sample: Sample) -> Rendered:
        """The rendered prompt that a sample with images in it began with."""
        for rendered in self._rendered:
            if _same(sample.prompt, rendered.prompt) and sample.prompt_ids == rendered.ids:
                return rendered
        rendered = self._renderer.render(sample.prompt)  # a part with a prompt of its own, from a checkpoint
        if rendered.ids != sample.prompt_ids:
            raise ComponentError(f"{_name(sample)}: its prompt_ids are not those of its prompt; begin with engine.part")
        self._rendered.append(rendered)
        return rendered


def new_sample(rendered: Rendered, group: int, index: int) -> Sample:
    """A sample that has not begun."""
    return Sample(
        group=group, index=index, prompt=rendered.prompt, prompt_text=rendered.text, prompt_ids=rendered.ids,
        media=rendered.media,
    )  # fmt: skip


def _same(one: Prompt, other: Prompt) -> bool:
    return one is other or (one.images == other.images and one.messages == other.messages)


def _name(sample: Sample) -> str:
    return f"sample {sample.index} of group {sample.group}"
