"""Who a running engine is, compared with what a plan expects of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from components.sglang import SGLANG_VERSION
from slime_launch.errors import ComponentError, Problem

_MODES = {"regular": "null", "prefill": "prefill", "decode": "decode"}
_GROUP_FIELDS = {"tp_size": "tp", "pp_size": "pp", "dp_size": "dp"}
_SHAPE = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "moe_intermediate_size", "num_experts", "n_routed_experts", "tie_word_embeddings",
)  # fmt: skip
_RANGE = re.compile(r"valid range is \[0, (\d+)\)")


@dataclass(frozen=True)
class Expected:
    """What a plan expects of an engine.

    key: where its group stands in the config. args: ServerArgs fields and the values that it must run with.
    """

    key: str
    kind: str
    model_path: str
    args: dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What an engine says of itself: ``/server_info`` (its keys included: never print it whole) and ``/model_info``."""

    client: httpx.Client
    headers: dict[str, str]
    info: dict[str, Any]
    model: dict[str, Any]

    @classmethod
    def of(cls, client: httpx.Client, key: str, timeout_s: float) -> Asked:
        """Ask. Raises ComponentError when it does not tell."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        answers = []
        for path in ("/server_info", "/model_info"):
            try:
                reply = client.get(path, headers=headers, timeout=timeout_s)
                answer = reply.raise_for_status().json()
            except httpx.HTTPStatusError as error:
                refused = error.response.status_code in (401, 403)
                mend = "; its token belongs into key_file" if refused else ""
                raise ComponentError(f"{client.base_url}{path} says {error.response.status_code}{mend}") from None
            except (httpx.HTTPError, ValueError) as error:
                raise ComponentError(f"{client.base_url}{path} gives no answer: {error!r}") from None
            if not isinstance(answer, dict):
                raise ComponentError(f"{client.base_url}{path} is not an SGLang engine's")
            answers.append(answer)
        return cls(client, headers, *answers)

    def summary(self) -> str:
        """One line for the log."""
        sizes = ", ".join(f"{name} {self.info.get(name)}" for name in ("dtype", "tp_size", "pp_size", "dp_size"))
        return f"SGLang {self.info.get('version')}, {self.model.get('architectures')}, {sizes}"

    def vocabulary(self) -> int | None:
        """Its vocabulary size, learnt from how it refuses the logprob of a token that cannot be; None where it is mum.

        Never asked by ``input_ids``: SGLang does not check those, and its scheduler would die of one.
        """
        body = {"input_ids": [0], "sampling_params": {"max_new_tokens": 1}, "return_logprob": True}
        body |= {"token_ids_logprob": [-1]}
        try:
            reply = self.client.post("/generate", json=body, headers=self.headers)
        except httpx.HTTPError:
            return None
        found = _RANGE.search(reply.text)
        return int(found[1]) if found else None

    def takes_admin(self, key: str) -> bool:
        """Whether this admin token opens its control endpoints, asked by an abort of no request."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            return self.client.post("/abort_request", json={"rid": ""}, headers=headers).status_code == 200
        except httpx.HTTPError:
            return False


def differences(asked: Asked, expected: Expected, admin_key: str | None) -> list[Problem]:
    """Everything in which an engine is not what is expected; ``admin_key``: None where it takes no weights.

    With another SGLang version nothing else is compared.
    """
    found = list(_version(asked, expected))
    if not found:
        found = [*_role(asked, expected), *_arguments(asked, expected), *_model(asked, expected)]
        if admin_key is not None and not asked.takes_admin(admin_key):
            reason = "it does not open the engine's control endpoints, so no weights can be sent"
            found.append(Problem(f"{expected.key}.admin_key_file", "***", reason, "give the engine's admin_api_key"))
    return found


def _version(asked: Asked, expected: Expected) -> Iterator[Problem]:
    version = asked.info.get("version")
    if version != SGLANG_VERSION:
        reason = f"it runs SGLang {version}, and this launcher is written for {SGLANG_VERSION}"
        yield Problem(f"{expected.key}.urls", _url(asked), reason, f"run SGLang {SGLANG_VERSION} there")


def _role(asked: Asked, expected: Expected) -> Iterator[Problem]:
    mode = asked.info.get("disaggregation_mode")
    if mode != _MODES[expected.kind]:
        is_ = next((kind for kind, name in _MODES.items() if name == mode), str(mode))
        mend = f"set worker_type to {is_}, or start it as {expected.kind}"
        yield Problem(f"{expected.key}.worker_type", expected.kind, f"it is a {is_} engine", mend)


def _arguments(asked: Asked, expected: Expected) -> Iterator[Problem]:
    for name, wanted in expected.args.items():
        value = asked.info.get(name)
        if value != wanted:
            field = _GROUP_FIELDS.get(name)
            key = f"{expected.key}.{field or f'overrides.{name}'}"
            said = f"it runs with {name}={value}" if name in asked.info else f"it does not tell its {name}"
            yield Problem(key, wanted, said, f"set {field or name} to what it runs with, or start it with yours")


def _model(asked: Asked, expected: Expected) -> Iterator[Problem]:
    ours, path = _config(expected.model_path), str(asked.info.get("model_path"))
    theirs, key = asked.model.get("architectures"), f"{expected.key}.path"
    mend = "set path of the group or its model to the checkpoint it serves, or start it with yours"
    if theirs != ours.get("architectures"):
        reason = f"it serves {path}, whose architectures are {theirs}, not {ours.get('architectures')}"
        yield Problem(key, expected.model_path, reason, mend)
        return
    if (Path(path) / "config.json").is_file():
        shapes = _shape(_config(path))
    else:
        # a folder of another machine: the vocabulary is all that an engine tells of its shape
        vocabulary = asked.vocabulary()
        shapes = {} if vocabulary is None else {"vocab_size": vocabulary}
    mine = _shape(ours)
    for name, value in shapes.items():
        if mine.get(name) != value:
            reason = f"it serves {path} with {name}={value}, not {mine.get(name)}"
            yield Problem(key, expected.model_path, reason, mend)


def _config(folder: str) -> dict[str, Any]:
    try:
        config = json.loads((Path(folder) / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ComponentError(f"{folder}/config.json cannot be read: {error}") from None
    return config if isinstance(config, dict) else {}


def _shape(config: dict[str, Any]) -> dict[str, Any]:
    text = config.get("text_config")
    inner = text if isinstance(text, dict) else {}
    values = config | {name: value for name, value in inner.items() if value is not None}
    return {name: values[name] for name in _SHAPE if values.get(name) is not None}


def _url(asked: Asked) -> str:
    return str(asked.client.base_url).rstrip("/")
