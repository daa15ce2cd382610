"""What the planner reads from the machine, without importing any GPU library.

Devices, cores, free ports, SGLang's sources.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import random
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_EPD_SOURCE = "arg_groups/pd_disaggregation_hook.py"
_PORTS = range(20_000, 32_000)  # below Linux's ephemeral range, which starts at 32,768


@dataclass(frozen=True)
class Machine:
    """gpus: CUDA devices that this process may see."""

    gpus: int


def read_machine() -> Machine:
    """Count GPUs; CUDA_VISIBLE_DEVICES is honoured, an empty one hides every GPU."""
    found = len([path for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit()])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        found = min(found, len([name for name in visible.split(",") if name.strip() not in ("", "-1")]))
    return Machine(gpus=found)


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """``count`` consecutive free loopback ports.

    Raises OSError when no such block is found.
    """
    for _ in range(200):
        first = random.SystemRandom().randrange(_PORTS.start, _PORTS.stop - count)
        block = list(range(first, first + count))
        if all(map(port_is_free, block)):
            return block
    raise OSError(f"no block of {count} free ports between {_PORTS.start} and {_PORTS.stop}")


@cache
def _package_file(package: str, inside: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    roots = (spec.submodule_search_locations or []) if spec else []
    return next((file for root in roots if (file := Path(root, "srt", inside)).is_file()), None)


def _strings(tree: ast.AST) -> set[str]:
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@cache
def epd_architectures() -> frozenset[str]:
    """Architectures that the installed SGLang accepts for encoder-prefill-decode.

    Read from its source without importing it.
    """
    file = _package_file("sglang", _EPD_SOURCE)
    if file is None:
        return frozenset()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name == "handle_encoder_disaggregation":
            return frozenset(
                name for name in _strings(node) if name.endswith(("ForConditionalGeneration", "Model", "ForCausalLM"))
            )
    return frozenset()


@cache
def server_argument_names() -> frozenset[str]:
    """Fields of the installed SGLang's ServerArgs, read from its sources without importing it."""
    file = _package_file("sglang", "arg_groups/fields/__init__.py")
    if file is None:
        return frozenset()
    names: set[str] = set()
    for source in file.parent.glob("*.py"):
        for node in ast.parse(source.read_text()).body:
            if isinstance(node, ast.ClassDef):
                names |= {
                    item.target.id
                    for item in node.body
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
                }
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
    return frozenset(names)
