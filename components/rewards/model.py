"""A score from a model that the run serves itself, an entry of ``rollout.topology.models``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from string import Template
from typing import Any

from components.rewards.wire import Wire
from slime_launch.errors import ComponentError
from slime_launch.types import Endpoint, Sample

_WORDS = ("prompt", "question", "response", "label")
_MAX_ANSWER_KB = 1024


class _Asks:
    """What both ways have in common: a text made of the sample, and the served model's router."""

    def __init__(self, served_model: str, template: str, timeout_s: float) -> None:
        self._model, self._template = served_model, _template(template)
        self._wire = Wire(timeout_s, _MAX_ANSWER_KB)
        self._endpoint: Endpoint | None = None

    def connect(self, endpoints: Mapping[str, Endpoint]) -> None:
        """Learn where the model's router is. Raises ComponentError when the topology has no such model."""
        if self._model not in endpoints:
            raise ComponentError(f"served_model={self._model}: not served; rollout.topology has {', '.join(endpoints)}")
        self._endpoint = endpoints[self._model]

    async def close(self) -> None:
        """Close the connections."""
        await self._wire.close()

    def _text(self, sample: Sample) -> str:
        return self._template.substitute(
            prompt=sample.prompt_text, question=_question(sample), response=sample.response, label=sample.prompt.label
        )

    async def _ask(self, path: str, body: dict[str, Any]) -> Any:
        if self._endpoint is None:
            raise ComponentError(f"served_model={self._model}: asked before it was connected to the topology")
        return await self._wire.post(self._endpoint.url + path, self._endpoint.key, {"model": self._model, **body})


class Judge(_Asks):
    """A chat model reads the answer and writes a score.

    served_model: which. template: what it is asked, with $question (the last user message), $prompt (the whole rendered
    prompt), $response and $label. pattern: regular expression whose one group is the score; of several places in the
    judge's answer the last counts. system: a system message before it. max_tokens: of its answer, which is greedy.
    request: further fields of the request, e.g. ``{chat_template_kwargs: {enable_thinking: false}}``.
    timeout_s: of one answer.
    """

    def __init__(
        self,
        served_model: str,
        template: str,
        pattern: str = r"[Ss]core:\s*(-?\d+(?:\.\d+)?)",
        system: str = "",
        max_tokens: int = 256,
        request: Mapping[str, Any] | None = None,
        timeout_s: float = 120.0,
    ) -> None:
        super().__init__(served_model, template, timeout_s)
        self._pattern = _pattern(pattern)
        self._system = [{"role": "system", "content": system}] if system else []
        self._request = {"temperature": 0.0, "max_tokens": max_tokens, **(request or {})}

    async def score_one(self, sample: Sample) -> float:
        """The score that the judge wrote.

        Raises ComponentError when it wrote none.
        """
        messages = [*self._system, {"role": "user", "content": self._text(sample)}]
        answer = await self._ask("/v1/chat/completions", {"messages": messages, **self._request})
        try:
            text = answer["choices"][0]["message"]["content"] or ""
            found = self._pattern.findall(text)
        except (LookupError, TypeError):
            raise ComponentError(f"judge {self._model} answered no chat completion: {answer!r:.200}") from None
        return _number(f"judge {self._model}", found[-1] if found else None, text)


class Scalar(_Asks):
    """A reward model's scalar head, e.g. of Qwen2ForRewardModel or LlamaForSequenceClassification.

    served_model: which; its engines run with ``is_embedding: true``. template: the text it reads, with the words of
    ``Judge``: unless said, the prompt as the actor got it, and the response. timeout_s: of one answer.
    """

    def __init__(self, served_model: str, template: str = "$prompt$response", timeout_s: float = 60.0) -> None:
        super().__init__(served_model, template, timeout_s)

    async def score_one(self, sample: Sample) -> float:
        """The head's one number, as it is.

        Raises ComponentError when there are more or none.
        """
        answer = await self._ask("/v1/embeddings", {"input": self._text(sample)})
        try:
            (score,) = answer["data"][0]["embedding"]
        except (LookupError, TypeError, ValueError):
            raise ComponentError(f"reward model {self._model} answered no single number: {answer!r:.200}") from None
        return _number(f"reward model {self._model}", score, score)


def _template(text: str) -> Template:
    template = Template(text)
    unknown = sorted(set(template.get_identifiers()) - set(_WORDS)) if template.is_valid() else ["$"]
    if unknown or "response" not in template.get_identifiers():
        what = f"does not know {', '.join(unknown)}" if unknown else "lacks $response"
        raise ComponentError(
            f"template={text!r:.80}: {what}; it may have {', '.join('$' + word for word in _WORDS)}, and $$ for a $"
        )
    return template


def _pattern(text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ComponentError(f"pattern={text}: not a regular expression ({error})") from error
    if pattern.groups != 1:
        raise ComponentError(f"pattern={text}: needs exactly one group, around the score")
    return pattern


def _number(whose: str, given: Any, shown: Any) -> float:
    try:
        score = float(given)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise ComponentError(f"{whose} gave no score: {shown!r:.200}")
    return score


def _question(sample: Sample) -> str:
    """Text of the last message of the user."""
    for message in reversed(sample.prompt.messages):
        if message["role"] == "user":
            content = message["content"]
            parts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
            return "".join(parts)
    return ""
