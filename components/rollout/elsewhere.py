"""Held-out sets that somebody else's server answers, by OpenAI's protocol: as text, without tokens and logprobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import httpx
import msgspec

from components.rollout.bounded import Bounded
from components.rollout.generation import Seeds, together
from components.rollout.media import check_images, data_uri, open_images, png
from components.rollout.prompts import Rendered
from slime_launch.errors import ComponentError
from slime_launch.key_files import read_key
from slime_launch.schema.sampling import openai_names
from slime_launch.types import Prompt, Sample, Status

if TYPE_CHECKING:
    from openai import AsyncOpenAI

NO_ANSWER = "no_answer"
"""Why a sample that the server did not answer is dropped."""
_TOKENS = ("prompt_ids", "response_ids", "logprobs", "loss_mask", "weight_versions")
_CUT = ("length", "content_filter")
_LONGEST_ANSWER = 16 << 20
_LONGEST_PAUSE_S = 60.0  # the client waits as long between tries where the server asks for it
_SEEDS = 2**31  # servers take 32 bits of a seed
_UNANSWERED = 2  # rounds of ``concurrency`` requests without a single answer that are enough


class TextSample(Sample):
    """A sample whose answer came as text. It has no tokens, and whoever looks at them is told so.

    Raises ComponentError there, and knows from then on that it did: a part of a reward may be allowed to fail.
    """

    __slots__ = ("_touched",)
    _touched: bool

    @property
    def touched(self) -> bool:
        """Whether somebody looked at its tokens."""
        return getattr(self, "_touched", False)

    def __getattribute__(self, name: str) -> Any:
        if name in _TOKENS:
            self._touched = True
            raise ComponentError(
                f"sample {self.index} of group {self.group} has no {name}: another server answered it, in text"
            )
        return super().__getattribute__(name)

    def __repr__(self) -> str:
        return f"TextSample(group={self.group}, index={self.index}, response={self.response!r:.80})"


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]


class _BadCompletion(ValueError):
    pass


class Elsewhere:
    """One server, asked for one entry of ``rollout.eval_sets``; see ``schema.rollout.EvalEndpoint`` for the arguments.

    entry: the entry's name. Requests that fail for a reason that may pass (408, 409, 429, 5xx, no connection, no
    answer in time) are made again by the client itself, ``retries`` times. Answers are bounded in time and size, no
    redirect is followed, and nothing of the environment is used: no proxy, no key.

    Raises ComponentError for a key file that cannot be read.
    """

    def __init__(
        self,
        entry: str,
        *,
        base_url: str,
        model: str,
        key_file: str | None,
        timeout_s: float,
        retries: int,
        concurrency: int,
        once: bool,
        fields: Mapping[str, str | None],
    ) -> None:
        self._where = f"rollout.eval_sets.{entry}.endpoint"
        self._url, self._model, self._timeout_s, self._retries = base_url, model, timeout_s, retries
        self._key = read_key(f"{self._where}.key_file", key_file)
        self._names, self._concurrency, self.once = openai_names(fields), concurrency, once
        self._lane = asyncio.Semaphore(concurrency)
        self._made: AsyncOpenAI | None = None

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self._where} ({self._model} at {self._url})"

    @property
    def takes_temperature(self) -> bool:
        """Whether it can be asked for greedy answers."""
        return self._names.get("temperature") is not None

    async def answers(
        self,
        prompts: Sequence[Rendered],
        count: int,
        sampling: Callable[[Prompt], Mapping[str, Any]],
        seeds: Seeds,
    ) -> list[TextSample]:
        """``count`` samples of each prompt; those without an answer are dropped with reason NO_ANSWER.

        Raises ComponentError, naming the server, when it refuses the key, the model or the address, and when more than
        half of the requests fail.
        """
        tally = _Tally(len(prompts) * count, _UNANSWERED * self._concurrency)
        messages = [_messages(one.prompt) for one in prompts]

        async def one(group: int, index: int) -> TextSample:
            prompt = prompts[group]
            asked = {**sampling(prompt.prompt), "sampling_seed": seeds(group, index) % _SEEDS}
            sample = TextSample(group, index, prompt.prompt, prompt.text, [])
            try:
                sample.response, sample.status = await self._ask(messages[group], asked)
                tally.answered += 1
            except _BadCompletion as error:
                sample.status, sample.dropped = Status.ABORTED, NO_ANSWER
                if tally.too_many_after_one_more():
                    raise ComponentError(
                        f"{self.title}: {tally.failed} of {tally.total} requests failed and {tally.answered} were "
                        f"answered; the last: {error}"
                    ) from None
            return sample

        return await together(one(group, index) for group in range(len(prompts)) for index in range(count))

    async def models(self) -> list[str]:
        """Names of the models that it says it serves.

        Raises ComponentError when it does not answer.
        """
        from openai import OpenAIError

        try:
            async with asyncio.timeout(self._limit_s):
                return [model.id async for model in self._client.models.list()]
        except (OpenAIError, TimeoutError, ValueError, AttributeError) as error:
            raise ComponentError(f"{self.title}: /models is not answered: {_told(error)}") from None

    async def close(self) -> None:
        """Close the connections."""
        if self._made is not None:
            await self._made.close()
            self._made = None

    @property
    def _limit_s(self) -> float:
        """Of one request with all its tries."""
        return (self._retries + 1) * (self._timeout_s + _LONGEST_PAUSE_S)

    @property
    def _client(self) -> AsyncOpenAI:
        if self._made is None:
            from openai import AsyncOpenAI, Omit

            nothing: Any = Omit()  # else the variables of OpenAI's own users would be sent
            http = httpx.AsyncClient(
                transport=Bounded(_LONGEST_ANSWER, self._timeout_s), timeout=self._timeout_s, trust_env=False,
                follow_redirects=False, headers={"Accept-Encoding": "identity"},
            )  # fmt: skip
            self._made = AsyncOpenAI(
                base_url=self._url, api_key=self._key, max_retries=self._retries, http_client=http,
                default_headers={"OpenAI-Organization": nothing, "OpenAI-Project": nothing},
            )  # fmt: skip
        return self._made

    async def _ask(self, messages: list[Any], sampling: Mapping[str, Any]) -> tuple[str, Status]:
        """(text, how it ended) of one answer. Raises _BadCompletion; ComponentError where no request would do."""
        from openai import AuthenticationError, NotFoundError, OpenAIError, PermissionDeniedError

        sent = {
            name: value for ours, value in sampling.items()
            if value is not None and (name := self._names.get(ours)) is not None
        }  # fmt: skip
        create = self._client.chat.completions.with_raw_response.create
        try:
            async with self._lane, asyncio.timeout(self._limit_s):
                reply = await create(model=self._model, messages=messages, extra_body=sent)
            choice = msgspec.json.decode(reply.content, type=_Completion).choices[0]
        except (AuthenticationError, PermissionDeniedError, NotFoundError) as error:
            raise ComponentError(f"{self.title}: it refuses every request: {_told(error)}") from None
        except (OpenAIError, TimeoutError, msgspec.MsgspecError, UnicodeDecodeError, IndexError) as error:
            raise _BadCompletion(_told(error)) from None
        cut = choice.finish_reason in _CUT
        return choice.message.content or "", Status.TRUNCATED if cut else Status.COMPLETED


class _Tally:
    """Requests of one call. patience: how many may fail while none is answered."""

    def __init__(self, total: int, patience: int) -> None:
        self.total, self._patience = total, patience
        self.answered = self.failed = 0

    def too_many_after_one_more(self) -> bool:
        """Count a failure; whether more than half fail, or none is answered."""
        self.failed += 1
        return 2 * self.failed > self.total or (not self.answered and self.failed >= self._patience)


def check_sendable(entry: str, fields: Mapping[str, str | None], prompt: Prompt) -> None:
    """Raises ComponentError for a prompt that cannot be sent: its sampling parameters, its tools, its images.

    entry, fields: of ``rollout.eval_sets`` and its endpoint.
    """
    key = f"rollout.eval_sets.{entry}.endpoint"
    where = f"{key}: a prompt of source {prompt.source}"
    for name, value in prompt.sampling.items():
        if name not in openai_names(fields):
            raise ComponentError(
                f"{where} has sampling.{name}={value!r:.50}, and OpenAI's protocol has no such parameter; give "
                f"{key}.fields.{name} the server's name for it, or null to leave it out"
            )
    if prompt.tools:
        raise ComponentError(f"{where} has tools: their calls would not come as text; leave such prompts out")
    check_images(prompt.messages, prompt.images)


def as_text(prompt: Prompt) -> Rendered:
    """A prompt for such a server: not tokenised, its text the messages' own, one paragraph each."""
    said = [f"{message.get('role')}: {_text(message)}" for message in prompt.messages]
    return Rendered(prompt, "\n\n".join(said), [], [])


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(str(part.get("text", "")) for part in content)


def _messages(prompt: Prompt) -> list[dict[str, Any]]:
    """The prompt's messages as OpenAI's protocol has them, each image in its place as a data URI."""
    uris = iter([data_uri(png(image)) for image in open_images(prompt.images)])

    def part(given: Mapping[str, Any]) -> dict[str, Any]:
        if given.get("type") == "image":
            return {"type": "image_url", "image_url": {"url": next(uris)}}
        return dict(given)

    return [
        message if isinstance(message.get("content"), str | None)
        else {**message, "content": [part(given) for given in message["content"]]}
        for message in prompt.messages
    ]  # fmt: skip


def _told(error: BaseException) -> str:
    """What an error says, with its cause where it is hidden behind a general one."""
    cause = f" ({error.__cause__!r})" if error.__cause__ is not None else ""
    return f"{type(error).__name__}: {error}{cause}"[:500]
