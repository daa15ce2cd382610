"""The rollout actor: draws prompts, generates, scores."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from components.rollout.client import Client, connect
from components.rollout.engine import SampleEngine
from components.rollout.metrics import score_of, summarise
from components.rollout.prompts import Rendered, Renderer
from components.rollout.seeds import sampling_seed
from slime_launch.errors import ComponentError
from slime_launch.interfaces import DataSource, Findings, Fits, Generate, Needs, Provides, Reports, Reward
from slime_launch.targets import instantiate
from slime_launch.types import Metrics, Prompt, Sample


class RolloutWorker:
    """Implements slime_launch.interfaces.Rollout.

    data, reward: ``_target_`` nodes; the data source also gets ``seed``.
    score: the reward part that evaluation reports, null for the mixed reward.
    sampling: temperature, top_p, max_new_tokens.
    routing: who picks the engine of a request, see ``client.connect``.
    max_concurrency: requests in flight for each engine that generates.
    seed: of the run; with step, group and index it gives each sample a seed of its own, and evaluation the same ones
        at each step. Engines on CPU sample by it, so neither arrival order nor the engine that answers matters.
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
        filters: dict[str, dict[str, Any]],
        partial: dict[str, Any],
        eval_sets: dict[str, dict[str, Any]],
        pass_at: list[int],
        max_concurrency: int,
        request_timeout_s: float,
        seed: int,
    ) -> None:
        self._generate_node, self._routing = generate, routing
        self._hf_checkpoint, self._data_node, self._reward_node = hf_checkpoint, data, reward
        self._score, self._seed = score, seed
        self._num_prompts, self._group_size, self._eval_samples = num_prompts, group_size, eval_samples
        self._sampling = sampling
        self._max_concurrency, self._request_timeout_s = max_concurrency, request_timeout_s
        self._runner = asyncio.Runner()
        self._client: Client | None = None

    @classmethod
    def preflight(cls, args: Mapping[str, Any]) -> Findings:
        """See ``components.rollout.preflight``."""
        from components.rollout.preflight import preflight

        return preflight(args)

    def start(self, needs: Needs) -> Provides:
        """Load tokenizer, data and rewards; connect to the engines."""
        self._renderer = Renderer(self._hf_checkpoint)
        self._data: DataSource = instantiate(self._data_node, seed=self._seed)
        if isinstance(self._data, Fits):
            self._data.fit(lambda prompt: len(self._renderer.render(prompt).ids))
        self._reward: Reward = instantiate(self._reward_node)
        self._generate: Generate = instantiate(self._generate_node)
        self._eval_sets = {
            name: [(prompt, self._renderer.render(prompt)) for prompt in prompts]
            for name, prompts in self._data.eval_sets().items()
        }
        self._client = self._runner.run(self._connect(needs))
        return {}

    def generate(self, step: int) -> tuple[list[Sample], Metrics]:
        """num_prompts x group_size scored samples, in prompt order, with ``rollout/*`` and ``perf/*`` metrics."""
        began = time.perf_counter()
        prompts = [(prompt, self._renderer.render(prompt)) for prompt in self._data.take(self._num_prompts)]
        samples = self._runner.run(self._sample(prompts, self._group_size, self._sampling, ("train", step)))
        generated = time.perf_counter()
        self._runner.run(self._reward_all(samples))
        times = {"perf/rollout_time": generated - began, "perf/reward_time": time.perf_counter() - generated}
        told = self._data.metrics() if isinstance(self._data, Reports) else {}
        return samples, summarise(samples, generated - began) | told | times

    def evaluate(self, step: int) -> Metrics:
        """Mean score of each held-out set.

        ``eval/<set>`` sampled as the rollout samples, ``eval/<set>/greedy`` at temperature 0.
        """
        began = time.perf_counter()
        metrics: Metrics = {}
        ways = {"": (self._eval_samples, self._sampling), "/greedy": (1, self._sampling | {"temperature": 0.0})}
        for name, prompts in self._eval_sets.items():
            for suffix, (count, sampling) in ways.items():
                samples = self._runner.run(self._sample(prompts, count, sampling, ("eval", name)))
                self._runner.run(self._reward_all(samples))
                metrics[f"eval/{name}{suffix}"] = sum(score_of(s, self._score) for s in samples) / len(samples)
        return metrics | {"perf/eval_time": time.perf_counter() - began}

    def state_dict(self) -> dict[str, Any]:
        """The data source's position after the last ``generate``.

        Raises ComponentError for a source that cannot tell it.
        """
        if not isinstance(self._data, DataSource):
            raise ComponentError(
                f"data: {type(self._data).__name__} has no state_dict and load_state_dict, so a run could not go on "
                "where it was; add them, or leave trainer.checkpoint.interval=0"
            )
        return self._data.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._data.load_state_dict(state)

    def failure(self) -> str | None:
        """None: what breaks here raises from the call that met it."""
        return None

    def stop(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._runner.run(self._client.close())
            self._client = None
            self._runner.close()

    async def _sample(
        self,
        prompts: Sequence[tuple[Prompt, Rendered]],
        count: int,
        sampling: dict[str, Any],
        round_: tuple[str, int | str],
    ) -> list[Sample]:
        """``count`` samples of each prompt; the first error ends the round and cancels the other requests.

        round_: what the samples are for, for their seeds.
        """
        if self._client is None:
            raise ComponentError("the rollout has not started")
        client = self._client
        jobs = []
        try:
            async with asyncio.TaskGroup() as group:
                for number, (prompt, rendered) in enumerate(prompts):
                    for index in range(count):
                        seed = sampling_seed(self._seed, *round_, number, index)
                        engine = SampleEngine(
                            client.session(), self._renderer, rendered, sampling | {"sampling_seed": seed}
                        )
                        sample = Sample(
                            group=number, index=index, prompt=prompt, prompt_text=rendered.text,
                            prompt_ids=rendered.ids, media=rendered.media,
                        )  # fmt: skip
                        jobs.append(group.create_task(self._generate(sample, engine)))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the others fail for the same cause, or by being cancelled
        made = [job.result() for job in jobs]
        return list(chain.from_iterable([one] if isinstance(one, Sample) else one for one in made))

    async def _reward_all(self, samples: list[Sample]) -> None:
        for sample, reward in zip(samples, await self._reward.score(samples), strict=True):
            sample.reward = reward
            if sample.raw_reward is None:
                sample.raw_reward = reward

    async def _connect(self, needs: Needs) -> Client:
        """The client, made inside the loop that will use it."""
        return connect(
            needs, self._routing, max_concurrency=self._max_concurrency, timeout_s=self._request_timeout_s,
            seed=self._seed,
        )  # fmt: skip
