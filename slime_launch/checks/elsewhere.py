"""Rules about held-out sets that somebody else's server answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from slime_launch.checks.facts import Facts, Rule
from slime_launch.errors import Problem
from slime_launch.key_files import key_problem
from slime_launch.schema.build import nearest
from slime_launch.schema.rollout import EvalEndpoint, EvalSet
from slime_launch.schema.sampling import NAMED, OPENAI_OWN, openai_names
from slime_launch.sglang_source import sampling_parameters

_URL = re.compile(r"^https?://(\[[0-9a-fA-F:]+\]|[\w.-]+)(:\d+)?(/[\w.~/-]*)?$")
_SINGLE = "components.rollout.single.SingleTurn"


def _sets(f: Facts) -> Iterator[tuple[str, EvalSet]]:
    """(key, set) of those that name a server."""
    for name, one in f.config.rollout.eval_sets.items():
        if one.endpoint.base_url is not None:
            yield f"rollout.eval_sets.{name}", one


def endpoints_are_whole(f: Facts) -> Iterator[Problem]:
    """A server has an address and a model's name; without an address nothing else is said of it."""
    for name, one in f.config.rollout.eval_sets.items():
        key, endpoint = f"rollout.eval_sets.{name}.endpoint", one.endpoint
        if endpoint.base_url is None:
            given = [
                at.name for at in fields(endpoint) if getattr(endpoint, at.name) != getattr(EvalEndpoint(), at.name)
            ]
            if given:
                reason = f"there is no server that {', '.join(given)} could be of"
                yield Problem(f"{key}.base_url", "null", reason, "give its address, e.g. https://host/v1")
            continue
        if not _URL.match(endpoint.base_url):
            mend = "write https://host[:port]/v1; a key belongs into a file that key_file names"
            yield Problem(f"{key}.base_url", endpoint.base_url, "not a server's address", mend)
        if not endpoint.model:
            yield Problem(f"{key}.model", endpoint.model or "null", "the server has to be told which", "give its name")
        if endpoint.key_file is not None and (problem := key_problem(f"{key}.key_file", endpoint.key_file)) is not None:
            yield problem


def endpoints_take_what_is_sent(f: Facts) -> Iterator[Problem]:
    """Every sampling parameter of such a set has a name in the requests, or is left out by the user's own word."""
    for key, one in _sets(f):
        yield from _names(f"{key}.endpoint.fields", one.endpoint.fields)
        names = openai_names(one.endpoint.fields)
        for at, given in (("rollout.sampling", f.config.rollout.sampling), (f"{key}.sampling", one.sampling)):
            for name, value in given.items():
                if name not in names:
                    reason = f"OpenAI's protocol has no such parameter, and {key} is asked by it"
                    mend = f"give {key}.endpoint.fields.{name} the server's name for it, or null to leave it out"
                    yield Problem(f"{at}.{name}", value, reason, mend)


def _names(key: str, given: Mapping[str, Any]) -> Iterator[Problem]:
    known = {*sampling_parameters(), *NAMED, "sampling_seed"}
    for name, told in given.items():
        if name not in known:
            yield Problem(f"{key}.{name}", told, "no such SGLang sampling parameter", nearest(name, known))
        elif told in OPENAI_OWN or told == "":
            yield Problem(f"{key}.{name}", told, "a field of the request itself", "give the parameter's name, or null")


def endpoints_answer_once(f: Facts) -> Iterator[Problem]:
    """Conversations with tools go on from tokens, which such a server neither takes nor gives."""
    target = f.config.rollout.generate.get("_target_")
    for key, one in _sets(f):
        if target not in (None, _SINGLE):
            reason = f"it is asked once a sample, and the run's answers come about by rollout.generate={target}"
            yield Problem(f"{key}.endpoint.base_url", one.endpoint.base_url, reason, f"use it with {_SINGLE}")


RULES: tuple[Rule, ...] = (endpoints_are_whole, endpoints_take_what_is_sent, endpoints_answer_once)
