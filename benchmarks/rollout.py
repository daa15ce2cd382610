"""Tokens per second of the rollout on this machine, each figure beside what it is to be compared with.

    python benchmarks/rollout.py [client] [decode] [routing] [flags] [--rounds 7] [--requests 64] [--tokens 32]

client: the rollout's own path against a bare asyncio client with the same requests and servers. decode: our engine on
CPU against SGLang's torch_native as released. routing: straight to the engine against through a router. flags: engine
arguments, with fresh prompts and with n samples of each. Both sides of a comparison are served side by side and asked
in turns; what is printed are medians over the rounds. Servers have the arguments of a real plan.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from components.models import recipes
from components.models.qwen3 import tiny
from components.rollout.client import connect
from components.rollout.engine import SampleEngine, new_sample
from components.rollout.prompts import Renderer
from components.sglang import attention, samples
from components.sglang.plugin import WITHOUT_ENV
from components.sglang.seeds import BATCH_TARGET, FILTER_TARGET
from components.sglang.server import Server
from slime_launch.types import Endpoint, Prompt

SLIME_LAUNCH = str(Path(sys.executable).with_name("slime-launch"))
SIZES: dict[str, dict[str, Any]] = {
    "0.33 M": {},
    "2.4 M": {
        "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 3, "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
}  # fmt: skip
OURS = (attention.DECODE_TARGET, attention.EXTEND_TARGET, samples.PREFILL_TARGET)
"""What makes our engine quicker; without these it decodes as SGLang does."""
STOCK = {WITHOUT_ENV: ",".join(OURS)}
SEEDLESS = {WITHOUT_ENV: f"{BATCH_TARGET},{FILTER_TARGET}"}


@dataclass(frozen=True)
class Work:
    """What one round asks for: ``requests`` requests of ``tokens`` new tokens each, ``samples`` of each prompt."""

    requests: int
    tokens: int
    rounds: int
    samples: int = 8

    def prompts(self, seed: int) -> list[Prompt]:
        """One prompt a request; fresh ones for each seed."""
        draw = random.Random(seed)
        texts = ["".join(draw.choices("abcdefghij ", k=24)) for _ in range(-(-self.requests // self.samples))]
        asked = [Prompt([{"role": "user", "content": text}], "") for text in texts]
        return [prompt for prompt in asked for _ in range(self.samples)][: self.requests]

    def sampling(self, seed: int) -> dict[str, Any]:
        return {"temperature": 1.0, "max_new_tokens": self.tokens, "ignore_eos": True, "sampling_seed": seed}


@dataclass(frozen=True)
class Variant:
    """An engine as the plan starts it, but for these arguments and environment."""

    name: str
    server_args: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    behind_router: bool = False


def planned(kind: str) -> dict[str, Any]:
    """The arguments that a plan gives to a server of a kind."""
    command = [SLIME_LAUNCH, "+experiment=qwen3_grpo", "rollout.routing=router", "mode=plan", "plan.format=json"]
    actors = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["actors"]
    found: dict[str, Any] = next(actor for actor in actors if actor["kind"] == kind)["args"]
    return found


def write_model(folder: Path, size: Mapping[str, Any]) -> Path:
    """A random Qwen3 of a size."""
    config = folder.with_suffix(".json")
    config.write_text(json.dumps(json.loads(tiny.CONFIG.read_text()) | size))
    recipes.write_checkpoint(folder, 1, config, tiny._tokenizer(), tiny.EOS)
    return folder


def make(kind: str, name: str, model: Path, args: Mapping[str, Any], env: Mapping[str, str]) -> Server:
    """A server of the plan under another name and port."""
    own = planned(kind)
    own |= {"name": name, "model_path": str(model), "log": str(model.parent / f"{name}.log")}
    version = {"weight_version": "0"} if kind == "regular" else {}  # as after the trainer's first sync
    return Server(**own | {"server_args": own["server_args"] | version | args, "env": own.get("env", {}) | env})


Needs = Mapping[str, list[Endpoint]]
Given = dict[str, tuple[Needs, list[Server]]]


@contextmanager
def serving(model: Path, variants: list[Variant]) -> Iterator[Given]:
    """What each variant's servers provide, and the servers, by its name."""
    made = [make("regular", f"engine-{n}", model, v.server_args, v.env) for n, v in enumerate(variants)]
    routers: list[Server] = []
    try:
        given: Given = {}
        with ThreadPoolExecutor() as pool:
            engines = [provided["engine_url"] for provided in pool.map(lambda server: server.start({}), made)]
        for variant, engine, server in zip(variants, engines, made, strict=True):
            given[variant.name] = ({"engine_url": [engine]}, [server])
            if variant.behind_router:
                routers.append(make("router", "router", model, {}, {}))
                began = time.perf_counter()
                url = routers[-1].start({"engine_url": [engine]})["router_url"]
                given[variant.name] = ({"engine_url": [engine], "router_url": [url]}, [server, routers[-1]])
                print(f"  a router takes {time.perf_counter() - began:.1f} s to start", flush=True)
        yield given
    finally:
        for server in (*routers, *made):
            server.stop()


async def ours(needs: Needs, renderer: Renderer, work: Work, seed: int) -> float:
    """Tokens per second of the rollout's client and engine, rendering left out, as it is of the bare client."""
    by = "router" if "router_url" in needs else "direct"
    rendered = [renderer.render(prompt) for prompt in work.prompts(seed)]
    client = connect(needs, {"by": by, "affinity": False}, max_concurrency=work.requests, timeout_s=600.0, seed=0)
    try:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            jobs = [
                group.create_task(
                    SampleEngine(client.session(), renderer, one, work.sampling(seed + n)).generate(
                        new_sample(one, n, 0)
                    )
                )
                for n, one in enumerate(rendered)
            ]
        taken = time.perf_counter() - began
    finally:
        await client.close()
    return sum(len(job.result().response_ids) for job in jobs) / taken


async def bare(needs: Needs, renderer: Renderer, work: Work, seed: int) -> float:
    """Tokens per second of a client that posts the same bodies and reads the answers."""
    [engine] = needs["engine_url"]
    bodies = [
        {"input_ids": renderer.render(prompt).ids, "sampling_params": work.sampling(seed + n), "return_logprob": True}
        for n, prompt in enumerate(work.prompts(seed))
    ]
    headers = {"Authorization": f"Bearer {engine.key}"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as http:

        async def one(body: dict[str, Any]) -> int:
            async with http.post(engine.url + "/generate", json=body) as reply:
                return len((await reply.json())["output_ids"])

        began = time.perf_counter()
        counts = await asyncio.gather(*map(one, bodies))
        return sum(counts) / (time.perf_counter() - began)


Ask = Callable[[int], Awaitable[float]]


@dataclass(frozen=True)
class Side:
    """One side of a comparison: how it is asked, and the servers whose processors' time counts."""

    ask: Ask
    servers: list[Server]

    def cpu_s(self) -> dict[int, float]:
        """Seconds of processor time that this process and those of its servers have used, by process id."""
        guards = [psutil.Process(server._process.pid) for server in self.servers if server._process]
        processes = [process for guard in guards for process in guard.children(recursive=True)]
        return {0: time.process_time()} | {process.pid: sum(process.cpu_times()[:2]) for process in processes}


def in_turns(title: str, sides: Mapping[str, Side], work: Work) -> None:
    """Ask the sides one after the other in each round, the order turned each time; the first round warms up.

    Prints each one's median tokens/s, its ratio to the first within a round (median), and its processor time: of all
    its processes, and of the busiest, which bounds the speed where nothing else runs. These depend less on what does.
    """
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    used: dict[str, list[list[float]]] = {name: [] for name in sides}
    for number in range(work.rounds + 1):
        for name in list(sides) if number % 2 else list(sides)[::-1]:
            # prompts that no engine has seen
            before, seed = sides[name].cpu_s(), 1000 * number + list(sides).index(name)
            speeds[name].append(asyncio.run(_run(sides[name].ask, seed)))
            after = sides[name].cpu_s()
            used[name].append([1e6 * (after[of] - before[of]) / (work.requests * work.tokens) for of in before])
    first = next(iter(sides))
    print(f"{title}, {work.requests} requests, {work.samples} samples a prompt", flush=True)
    for name in sides:
        ratios = [mine / other for mine, other in zip(speeds[name][1:], speeds[first][1:], strict=True)]
        cpu = statistics.median(map(sum, used[name][1:])), statistics.median(map(max, used[name][1:]))
        print(
            f"  {name:<28} {statistics.median(speeds[name][1:]):8,.0f} tokens/s {statistics.median(ratios):6.2f}"
            f"   processor {cpu[0]:4.0f} us a token, the busiest process {cpu[1]:4.0f}",
            flush=True,
        )


async def _run(ask: Ask, seed: int) -> float:
    return await ask(seed)


def sides_of(model: Path, given: Given, work: Work) -> dict[str, Side]:
    """Each variant asked by the rollout's client."""
    renderer = Renderer(str(model))

    def side(needs: Needs, servers: list[Server]) -> Side:
        return Side(lambda seed: ours(needs, renderer, work, seed), servers)

    return {name: side(*both) for name, both in given.items()}


def client(model: Path, size: str, work: Work) -> None:
    """Our client against a bare one."""
    renderer = Renderer(str(model))
    with serving(model, [Variant("rollout")]) as given:
        needs, servers = given["rollout"]
        sides = {"bare client": Side(lambda seed: bare(needs, renderer, work, seed), servers)}
        in_turns(f"client, {size}", sides | sides_of(model, given, work), work)


def decode(model: Path, size: str, work: Work) -> None:
    """Our engine on CPU against SGLang's."""
    with serving(model, [Variant("torch_native as released", env=STOCK), Variant("slime-launch")]) as given:
        in_turns(f"decode, {size}", sides_of(model, given, work), work)


def routing(model: Path, size: str, work: Work) -> None:
    """With and without a router."""
    with serving(model, [Variant("through a router", behind_router=True), Variant("direct")]) as given:
        in_turns(f"routing, {size}", sides_of(model, given, work), work)


FLAGS = [
    Variant("as planned"),
    Variant("without seeds of requests", env=SEEDLESS),
    Variant("without radix cache", {"disable_radix_cache": True}),
    Variant("overlap schedule", {"disable_overlap_schedule": False}),
    Variant("stream_interval 1", {"stream_interval": 1}),
    Variant("without tokenizer", {"skip_tokenizer_init": True}),
]


def flags(model: Path, size: str, work: Work) -> None:
    """Engine arguments one at a time, for fresh prompts and for samples of the same."""
    with serving(model, FLAGS) as given:
        for samples in (1, work.samples):
            of = replace(work, samples=samples)
            in_turns(f"flags, {size}", sides_of(model, given, of), of)


PARTS = {"client": client, "decode": decode, "routing": routing, "flags": flags}


def main() -> None:
    """Run the parts that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=SIZES)
    for name, default in (("rounds", 7), ("requests", 64), ("tokens", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    work = Work(asked.requests, asked.tokens, asked.rounds)
    with tempfile.TemporaryDirectory() as folder:
        for size in asked.sizes:
            model = write_model(Path(folder, size.replace(" ", "")), SIZES[size])
            for part in asked.parts:
                PARTS[part](model, size, work)


if __name__ == "__main__":
    main()
