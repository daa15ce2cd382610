"""Whether the installed SGLang takes a server's arguments, asked without starting or resolving anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, get_type_hints

import msgspec

from slime_launch.errors import Problem
from slime_launch.interfaces import Findings
from slime_launch.schema.build import nearest

# what each kind cannot do without, and what it must not be told
_NEEDED = {"prefill": ("disaggregation_bootstrap_port",), "follower": ("nnodes", "node_rank", "dist_init_addr")}
_MODES = {"prefill": "prefill", "decode": "decode"}


def check_server_args(kind: str, server_args: Mapping[str, Any]) -> list[str]:
    """What is wrong with an engine's or encoder's ServerArgs fields, one line each; empty when all is well.

    Names, types and choices come from the installed SGLang, whose import takes about seven seconds.
    """
    return [str(problem) for problem in server_problems(kind, server_args, "server_args")]


def check_router_args(args: Mapping[str, Any]) -> list[str]:
    """The same for a router's RouterArgs fields."""
    return [str(problem) for problem in router_problems(args, "router_args")]


def preflight(args: Mapping[str, Any]) -> Findings:
    """The same for the ``args`` that a plan gives to ``Server``."""
    kind, own = args["kind"], args["server_args"]
    if kind == "router":
        return Findings(router_problems(own, "rollout.router_args"))
    return Findings(list(server_problems(kind, own, "rollout.server_args")))


def server_problems(kind: str, args: Mapping[str, Any], key: str) -> Iterator[Problem]:
    """Each argument that SGLang would refuse or misread."""
    from sglang.srt.server_args import ServerArgs

    known = {field.name: field.type for field in msgspec.structs.fields(ServerArgs)}
    for name, value in args.items():
        if name not in known:
            yield Problem(f"{key}.{name}", value, "no such SGLang server argument", nearest(name, known))
        elif reason := _mismatch(value, known[name]) or _no_choice(value, known[name]):
            yield Problem(f"{key}.{name}", value, reason, "see SGLang's ServerArgs")
    for name in _NEEDED.get(kind, ()):
        if args.get(name) is None:
            yield Problem(f"{key}.{name}", None, f"a {kind} server needs it", "make the plan again")
    mode, wanted = args.get("disaggregation_mode", "null"), _MODES.get(kind)
    if kind != "follower" and mode != (wanted or "null"):
        yield Problem(f"{key}.disaggregation_mode", mode, f"a {kind} server", "set worker_type of the group")


def router_problems(args: Mapping[str, Any], key: str) -> list[Problem]:
    """Each argument that sglang-router would refuse."""
    from sglang_router.router import Router
    from sglang_router.router_args import RouterArgs

    known, types = [field.name for field in fields(RouterArgs)], get_type_hints(RouterArgs)
    found = []
    for name, value in args.items():
        if name not in known:
            found.append(Problem(f"{key}.{name}", value, "no such sglang-router argument", nearest(name, known)))
        elif reason := _mismatch(value, types[name]) or _no_policy(name, value):
            found.append(Problem(f"{key}.{name}", value, reason, "see sglang-router's RouterArgs"))
    if not found:
        try:
            Router.from_args(RouterArgs(**args))
        except Exception as error:  # whatever the compiled router says
            found.append(Problem(key, dict(args), f"{type(error).__name__}: {error}", "see sglang-router's RouterArgs"))
    return found


def _mismatch(value: Any, annotation: Any) -> str | None:
    try:
        msgspec.convert(value, annotation)
    except msgspec.ValidationError as error:
        reason = str(error).split(" - at")[0].replace("`", "")
        return reason[0].lower() + reason[1:]
    except TypeError:
        return None  # a type that msgspec cannot check
    return None


def _no_policy(name: str, value: Any) -> str | None:
    from sglang_router.router import policy_from_str

    if name in ("policy", "prefill_policy", "decode_policy"):
        try:
            policy_from_str(value)
        except KeyError:
            return "no such policy, e.g. round_robin"
    return None


def _no_choice(value: Any, annotation: Any) -> str | None:
    """SGLang compares with the choices on its command line only; a constructed ServerArgs fails much later."""
    for entry in getattr(annotation, "__metadata__", ()):
        choices = getattr(entry, "choices", None)
        if choices and value is not None and not isinstance(value, list) and value not in choices:
            return f"not one of {', '.join(map(str, choices))}"
    return None
