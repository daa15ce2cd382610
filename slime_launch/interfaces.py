"""The contracts between the launcher and the components that a config's ``_target_`` names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from slime_launch.data_files import FileRows
from slime_launch.errors import Problem
from slime_launch.manifest import Manifest
from slime_launch.types import Endpoint, Metrics, Prompt, Sample, Turn

if TYPE_CHECKING:
    from torch import Tensor

Provides = Mapping[str, Any]
Needs = Mapping[str, Sequence[Any]]
UNANSWERED = "unanswered"
"""``eval/<set>/unanswered``: requests that another server than the run's did not answer, zero included."""


@runtime_checkable
class Component(Protocol):
    """One node of the plan's graph, hosted by one Ray actor.

    The constructor takes the plan's ``args`` and stays light; ``start`` does the work once what it needs is there.
    """

    def start(self, needs: Needs) -> Provides:
        """Start; ``needs`` maps each needed name to the values its providers gave. Returns what this one provides."""

    def failure(self) -> str | None:
        """None while healthy, else one paragraph that says what broke (asked every few seconds, must be quick)."""

    def stop(self) -> None:
        """Give everything back; safe to call twice and after a failed start."""


@runtime_checkable
class Renewable(Protocol):
    """A component that goes on serving when another run takes it over."""

    def renew(self) -> Provides:
        """Let nothing of the run before be left in it: no request, no cache. Returns what ``start`` returned."""


@runtime_checkable
class WeightSink(Protocol):
    """One engine as a target of weight sync. Picklable until ``connect``; trainer rank 0 calls it."""

    def connect(self) -> None:
        """Join the transfer group, once a run.

        Raises ComponentError when the engine refuses or does not join within its deadline.
        """

    def begin(self) -> None:
        """Open an update: the engine takes no new weights outside of one."""

    def send(self, bucket: Sequence[tuple[str, Tensor]], version: int | None) -> None:
        """Send (HF name, full tensor) pairs; ``version`` goes with the last bucket only, and is then what it serves."""

    def end(self) -> None:
        """Close the update; the engine generates with the new weights from here on."""

    def close(self) -> None:
        """Leave the transfer group."""


@dataclass(frozen=True)
class Restored:
    """What a trainer took from a checkpoint: optimizer updates done, and whether its random generators go on too."""

    updates: int
    rng: bool


@runtime_checkable
class RemoteMedia(Protocol):
    """Beside being a mapping: ``Sample.media`` of which the large arrays are elsewhere until they are read.

    A rank should read what its part of the model takes, and nothing else: what nobody reads on a node never goes there.
    """

    def digest(self, name: str) -> bytes:
        """Equal for arrays of equal content, without reading them: all ranks decide alike who shares a row."""


@runtime_checkable
class Trainer(Component, Protocol):
    """A Megatron rank. Every rank gets the same calls in the same order; rank 0's answers count."""

    def train(self, step: int, samples: list[Sample]) -> Metrics:
        """One GRPO step over the whole rollout batch. Returns ``train/*`` metrics, the logprob gap among them.

        Every rank gets all samples, with ``RemoteMedia`` where there are any, and prompts without image files.
        """

    def sync(self, version: int) -> Metrics:
        """Push the weights into every engine. Returns ``perf/update_weights_*``."""

    def save_hf(self, folder: str) -> None:
        """Write the weights as a Hugging Face checkpoint that transformers loads and SGLang serves."""

    def save(self, folder: str) -> None:
        """Copy the training state and start to write it into an empty folder, beside whatever is called next."""

    def finish_save(self, wait: bool) -> Manifest | None:
        """The files of the save under way once it is complete; None while it goes on, unless ``wait``."""

    def load(self, folder: str, weights_only: bool = False) -> Restored:
        """Go on from what ``save`` wrote, in whatever layout, or start from its weights alone."""


@runtime_checkable
class Rollout(Component, Protocol):
    """The actor that draws prompts, generates and scores."""

    def generate(self, step: int) -> tuple[list[Sample], Metrics]:
        """num_prompts scored groups, ``rollout/*`` and ``perf/*`` metrics."""

    def evaluate(self, step: int) -> Metrics:
        """``eval/<set>`` and ``eval/<set>/greedy`` for each held-out set.

        A set that somebody else's server answers has ``eval/<set>/unanswered`` too, and is no score of the actor.
        """

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values: the data source's position after the last ``generate``, and the samples kept for later."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""


@runtime_checkable
class DataSource(Protocol):
    """Prompts for training, in an order fixed by the seed, and held-out sets for evaluation."""

    def take(self, num_prompts: int) -> list[Prompt]:
        """The next prompts; goes round again when the set is used up."""

    def eval_sets(self) -> dict[str, list[Prompt]]:
        """Held-out prompts by set name; never among those of ``take``."""

    def state_dict(self) -> dict[str, Any]:
        """Where ``take`` stands, as plain JSON values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there: ``take`` gives what it would have given next.

        Raises ComponentError for a state of other data or of another seed.
        """


@runtime_checkable
class Fits(Protocol):
    """A data source that leaves out prompts by their length in tokens."""

    def fit(self, length_of: Callable[[Prompt], int]) -> None:
        """Called once before the first ``take``; ``length_of`` renders a prompt as the rollout does."""


@runtime_checkable
class OfFiles(Protocol):
    """A data source of files, open: which rows of them it takes, so that held-out ones can be kept apart."""

    def trained_rows(self) -> list[FileRows]:
        """What ``take`` gives prompts from."""

    def held_rows(self) -> dict[str, list[FileRows]]:
        """What the held-out sets are made from, by their names."""


@runtime_checkable
class Reports(Protocol):
    """A data source that has something to tell."""

    def metrics(self) -> Metrics:
        """``data/*`` after the last ``take``, e.g. rounds over a source and prompts left out."""


@runtime_checkable
class Engine(Protocol):
    """What a generate function sees of the engines: one conversation with one of them."""

    sampling: Mapping[str, Any]

    async def generate(self, sample: Sample, **sampling: Any) -> Sample:
        """Let the sample go on: one request with its prompt, images and tokens so far; appends what was sampled.

        sampling: SGLang sampling parameters over ``self.sampling``. ``max_new_tokens`` is the whole response's budget:
        what is there already counts, the tokens of tools too; a spent one makes the sample TRUNCATED without a request.
        """

    def part(self, sample: Sample, messages: Sequence[Mapping[str, Any]]) -> Sample:
        """A further sample of the same rollout with a prompt of its own; images stay the prompt's, or go."""

    def encode(self, text: str) -> list[int]:
        """Ids of text, no special tokens added."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""

    async def continuation(self, sample: Sample, messages: Sequence[Mapping[str, Any]]) -> Turn:
        """What puts chat messages (say, role tool) behind the sample's tokens so far, as the chat template does, the
        next assistant turn opened; ``Sample.add_turn`` takes it.

        An image is a part ``{"type": "image", "image": ...}`` of a message: bytes, a Pillow image, or whatever else
        ``rollout.media`` reads. It is processed here, once, and every later request carries it.
        """


@runtime_checkable
class Images(Protocol):
    """Reads the images that later turns bring, within bounds; asked from several threads."""

    def load(self, ref: Any) -> bytes:
        """A plain RGB PNG.

        Raises ValueError, which names the image, for one that cannot be had or is too large.
        """


@runtime_checkable
class Generate(Protocol):
    """How one rollout comes about: single turn, with tools, as a user's own."""

    async def __call__(self, sample: Sample, engine: Engine) -> Sample | list[Sample]:
        """Bring a PENDING or ABORTED sample to an end.

        Several samples that it returns are parts of one rollout; the launcher numbers them (``Sample.part``).
        """


@runtime_checkable
class Filter(Protocol):
    """Decides which scored groups are trained on. A plain function is named with ``_partial_: true``."""

    def __call__(self, group: Sequence[Sample]) -> str | None:
        """None keeps the group; else a short reason, counted as ``rollout/dynamic_filter/drop_<reason>``."""


@runtime_checkable
class Reward(Protocol):
    """Scores finished samples."""

    async def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score a sample, in order; nan for one that was dropped (``Sample.dropped`` says why).

        The samples are whole groups. A part of a mixer that fails may be asked again for some of them alone: what
        compares samples is a GroupReward.
        """


@runtime_checkable
class SingleReward(Protocol):
    """A part of a mixer that scores one finished sample at a time; several are asked at once, up to a bound."""

    async def score_one(self, sample: Sample) -> float:
        """Its score."""


@runtime_checkable
class GroupReward(Protocol):
    """A part of a mixer that compares the samples of one prompt."""

    async def score_group(self, samples: Sequence[Sample]) -> list[float]:
        """One score a sample of one whole group, in order; samples dropped before are not among them."""


@runtime_checkable
class Connects(Protocol):
    """A reward that asks the topology's models."""

    def connect(self, endpoints: Mapping[str, Endpoint]) -> None:
        """Called once before the first score; routers by served model."""


@runtime_checkable
class Stepped(Protocol):
    """A reward that changes over the run, e.g. by a schedule of weights."""

    def begin_step(self, step: int) -> None:
        """Called before a step's first score; evaluation asks with the step it follows."""


@runtime_checkable
class Routes(Protocol):
    """A reward that scores the samples of some data sources only."""

    def unserved(self, sources: Sequence[str]) -> list[str]:
        """Those of the sources whose samples it cannot score."""


@runtime_checkable
class Counts(Protocol):
    """A reward that knows how often it failed."""

    def counts(self) -> Metrics:
        """Since the last call, e.g. ``rollout/reward_errors/<part>``; a step's are asked for when it has scored."""


@runtime_checkable
class Closes(Protocol):
    """A component that holds processes or connections."""

    async def close(self) -> None:
        """Give them back; called once, in the loop that scored."""


@runtime_checkable
class Algorithm(Protocol):
    """Advantages and the policy loss: pure tensor functions. N samples, T response tokens of a micro-batch."""

    def advantages(self, rewards_N: Tensor, groups_N: Tensor) -> Tensor:
        """One advantage a sample [N]."""

    def loss(
        self, logprobs_BT: Tensor, old_logprobs_BT: Tensor, advantages_B: Tensor, mask_BT: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Per-token loss [B, T] and per-token metrics [B, T] (``pg_clipfrac``, ``ppo_kl``)."""


@runtime_checkable
class Tracker(Protocol):
    """Takes each step's metrics."""

    def log(self, step: int, metrics: Metrics) -> None:
        """Record one step."""

    def close(self) -> None:
        """Flush."""


@dataclass(frozen=True)
class Findings:
    """What a component finds in its own arguments: what is wrong, and lines worth showing."""

    problems: list[Problem] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


@runtime_checkable
class Checkable(Protocol):
    """A component that can look at its arguments deeper than a plan does; it may import anything and starts nothing."""

    @classmethod
    def preflight(cls, args: Mapping[str, Any]) -> Findings:
        """Look at the ``args`` of the plan. A LaunchError raised here is a problem like any other."""


@runtime_checkable
class StandsIn(Protocol):
    """A component that makes a checkpoint, and can write a quick stand-in of the same shape and tokenizer."""

    @classmethod
    def write_stand_in(cls, args: Mapping[str, Any], folder: str) -> None:
        """Write it into ``folder``, whatever ``args`` say of where the real one goes."""
