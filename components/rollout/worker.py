"""The rollout actor: draws prompts, generates, scores."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from itertools import chain
from typing import Any

from components.rollout.answers import vocabulary_of
from components.rollout.buffer import Buffer
from components.rollout.callables import make_callable
from components.rollout.client import Client, connect
from components.rollout.collect import REFUSED, Rules, collect
from components.rollout.evaluation import Defaults, evaluate, held_out, named_sets
from components.rollout.generation import Generator
from components.rollout.metrics import control, passrates, summarise, without_raw
from components.rollout.prompts import Rendered, Renderer
from components.rollout.sampling import check_training
from components.rollout.scoring import Judge
from components.rollout.seeds import sampling_seed
from components.rollout.sources import open_source
from slime_launch.errors import ComponentError
from slime_launch.interfaces import (
    Closes,
    Connects,
    Counts,
    DataSource,
    Filter,
    Findings,
    Generate,
    Images,
    Needs,
    Provides,
    Reports,
    Reward,
    Stepped,
)
from slime_launch.targets import instantiate
from slime_launch.types import UNSAMPLED, Metrics, Prompt, Sample


class RolloutWorker:
    """Implements slime_launch.interfaces.Rollout.

    data, reward, generate, filters: ``_target_`` nodes; the data source also gets ``seed``.
    media: node of the ``slime_launch.interfaces.Images`` that reads what environments show; null: they show none.
    score: the reward part that evaluation reports, null for the mixed reward.
    sampling: SGLang's sampling parameters. eval_sets: by name, what differs (see ``schema.rollout.EvalSet``); a reward
        of its own as ``{node, score}``.
    oversample, draw_limit, keep_when_insufficient, partial: see ``components.rollout.collect.Rules``.
    compares_group: groups need two rollouts at least.
    routing: ``by`` router or direct, ``affinity``: see ``components.rollout.client.connect``.
    max_concurrency: requests in flight for each engine that generates. max_refused_answers: of one engine in a step.
    seed: of the run; with group and index it gives each rollout a seed of its own, and evaluation the same ones at each
        step. Engines on CPU sample by it, so neither arrival order nor the engine that answers matters.
    """

    def __init__(
        self,
        *,
        hf_checkpoint: str,
        data: dict[str, Any],
        reward: dict[str, Any],
        score: str | None,
        num_prompts: int,
        group_size: int,
        eval_samples: int,
        sampling: dict[str, Any],
        generate: dict[str, Any],
        routing: dict[str, Any],
        oversample: float,
        draw_limit: int,
        keep_when_insufficient: bool,
        filters: dict[str, dict[str, Any]],
        partial: dict[str, Any],
        compares_group: bool,
        eval_sets: dict[str, dict[str, Any]],
        pass_at: list[int],
        max_concurrency: int,
        max_refused_answers: int,
        request_timeout_s: float,
        seed: int,
        media: dict[str, Any] | None = None,
    ) -> None:
        self._hf_checkpoint, self._score, self._seed = hf_checkpoint, score, seed
        self._data_node, self._reward_node, self._generate_node = data, reward, generate
        self._filter_nodes, self._eval_nodes, self._media_node = filters, eval_sets, media
        self._rules = Rules(
            num_prompts=num_prompts, group_size=group_size, oversample=oversample, draw_limit=draw_limit,
            keep_when_insufficient=keep_when_insufficient, keep=partial["keep"], max_lag=partial["max_lag"],
            patience_s=request_timeout_s,
        )  # fmt: skip
        self._mask_old, self._least = partial["mask_old"], 2 if compares_group else 1
        self._eval_samples, self._pass_at, self._sampling = eval_samples, pass_at, sampling
        self._routing = routing
        self._max_concurrency, self._request_timeout_s = max_concurrency, request_timeout_s
        self._max_refused = max_refused_answers
        self._runner = asyncio.Runner()
        self._client: Client | None = None
        self._stopped = False
        self._rewards: list[Reward] = []
        self._closing: list[Any] = []
        self._told: set[str] = set()

    @classmethod
    def preflight(cls, args: Mapping[str, Any]) -> Findings:
        """See ``components.rollout.preflight``."""
        from components.rollout.preflight import preflight

        return preflight(args)

    def start(self, needs: Needs) -> Provides:
        """Load tokenizer, data and rewards; connect to the engines."""
        self._renderer = Renderer(self._hf_checkpoint)
        open_node = partial(open_source, seed=self._seed, renderer=self._renderer)
        self._data: DataSource = open_node(self._data_node)
        self._endpoints = {endpoint.model: endpoint for endpoint in needs.get("router_url", ())}
        reward = self._make_reward(self._reward_node)
        generate: Generate = make_callable("rollout.generate", self._generate_node)
        self._closing.append(generate)
        filters: dict[str, Filter] = {
            name: make_callable(f"rollout.filters.{name}", node) for name, node in self._filter_nodes.items()
        }
        self._judge = Judge(reward, filters, self._least)
        self._sets = held_out(
            named_sets(self._data, self._eval_nodes, open_node), self._renderer.render, self._make_reward,
            Defaults(self._eval_samples, reward, self._score, self._pass_at),
        )  # fmt: skip
        self._closing += [one.server for one in self._sets]
        self._buffer = Buffer(self._data, self._render)
        self._client = self._runner.run(self._connect(needs))
        images: Images | None = instantiate(self._media_node) if self._media_node else None
        self._generator = Generator(
            self._client, self._renderer, generate, self._sampling, self._seed_of,
            vocabulary=vocabulary_of(self._hf_checkpoint), images=images,
        )  # fmt: skip
        return {}

    def generate(self, step: int) -> tuple[list[Sample], Metrics]:
        """num_prompts scored groups by number, with ``rollout/*``, ``passrate/*`` and ``perf/*`` metrics."""
        if self._client is None:
            raise ComponentError("the rollout has not started")
        self._begin_step(step)
        version = step - 1
        collected = self._runner.run(collect(self._rules, self._buffer, self._generator, self._judge, version))
        samples = list(chain.from_iterable(scored.samples for scored in collected.groups))
        told = self._data.metrics() if isinstance(self._data, Reports) else {}
        metrics = summarise(samples, version) | passrates(collected, self._score, self._pass_at) | control(collected)
        self._tell_of_raw_rewards(samples)
        if collected.refusal:
            print(
                f"rollout: step {step} goes on without {collected.drops[REFUSED]} prompts{collected.refusal}",
                flush=True,
            )
        if self._mask_old:
            _mask_old(samples, version)
        refused = {f"rollout/{name}": count for name, count in self._client.refusals.take().items()}
        metrics |= {"rollout/refused_answers": sum(refused.values(), 0.0)} | refused
        return samples, metrics | told | self._reward_counts()

    def evaluate(self, step: int) -> Metrics:
        """Mean score of each held-out set; see ``components.rollout.evaluation.evaluate``."""
        began = time.perf_counter()
        self._begin_step(step)
        metrics = self._runner.run(evaluate(self._sets, self._generator, self._seed))
        failed = {f"eval/{name.partition('/')[2]}": count for name, count in self._reward_counts().items() if count}
        if self._client is not None:
            failed |= {f"eval/{name}": count for name, count in self._client.refusals.take().items()}
        return metrics | failed | {"perf/eval_time": time.perf_counter() - began}

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values; see ``components.rollout.buffer.Buffer.state_dict``."""
        return self._buffer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._buffer.load_state_dict(state)

    def failure(self) -> str | None:
        """None: what breaks here raises from the call that met it."""
        return None

    def stop(self) -> None:
        """Give back what rewards and generate function hold, and close the connections."""
        if not self._stopped:
            self._stopped = True
            with self._runner:
                self._runner.run(self._close())

    def _render(self, prompt: Prompt) -> Rendered:
        """One prompt of training."""
        check_training(prompt, self._sampling)
        return self._renderer.render(prompt)

    def _seed_of(self, group: int, index: int) -> int:
        return sampling_seed(self._seed, "train", group, index)

    def _make_reward(self, node: Mapping[str, Any]) -> Reward:
        reward: Reward = instantiate(node)
        self._rewards.append(reward)
        self._closing.append(reward)
        if isinstance(reward, Connects):
            reward.connect(self._endpoints)
        return reward

    def _begin_step(self, step: int) -> None:
        for reward in self._rewards:
            if isinstance(reward, Stepped):
                reward.begin_step(step)

    def _reward_counts(self) -> Metrics:
        """Failures of all rewards since the last call."""
        total: Metrics = {}
        for reward in self._rewards:
            for name, count in reward.counts().items() if isinstance(reward, Counts) else ():
                total[name] = total.get(name, 0.0) + count
        return total

    def _tell_of_raw_rewards(self, samples: list[Sample]) -> None:
        """Name, once, each source whose samples lack the raw reward that others of the batch have."""
        for source in sorted(without_raw(samples).keys() - self._told):
            self._told.add(source)
            print(f"rollout: source {source} gives no raw_reward, others do: its reward stands for it", flush=True)

    async def _connect(self, needs: Needs) -> Client:
        """Make the client inside the loop that will use it."""
        return connect(
            needs, self._routing, max_concurrency=self._max_concurrency, timeout_s=self._request_timeout_s,
            max_refused=self._max_refused, seed=self._seed,
        )  # fmt: skip

    async def _close(self) -> None:
        async with AsyncExitStack() as stack:  # whatever fails, all of them are closed
            for made in (self._client, *self._closing):
                if isinstance(made, Closes):
                    stack.push_async_callback(made.close)


def _mask_old(samples: list[Sample], version: int) -> None:
    """Let tokens of older weights not count."""
    for sample in samples:
        ages = zip(sample.loss_mask, sample.weight_versions, strict=True)
        sample.loss_mask = [0 if UNSAMPLED < made < version else counts for counts, made in ages]
