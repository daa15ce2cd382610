"""The trainer: one Megatron rank, hosted by one Ray actor. Light to import and to construct."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.megatron.parallel import Sizes
from components.megatron.platform import load_platform
from components.megatron.sending import Sender
from slime_launch.errors import ComponentError, LaunchError
from slime_launch.interfaces import Findings, Needs, Provides, Restored
from slime_launch.manifest import Manifest
from slime_launch.types import Metrics, Sample

if TYPE_CHECKING:
    from components.megatron.dist_checkpoint import Writing
    from components.megatron.parts import Parts


ROLES = ("actor", "critic")


class MegatronTrainer:
    """Trains a Hugging Face checkpoint with Megatron-Core; slime_launch.interfaces.Trainer.

    hf_checkpoint: folder with config.json and safetensors. family: a folder of components/models, or auto.
    spec: ``_target_`` node, called with (config, vp_stage); see ``components.models.qwen3.spec.layer_spec``.
    freeze, train_only: patterns (``re.search``) of parameter names, global layer numbers, that do not train, or that
        alone do; one of the two, each pattern must match something.
    transformer: fields of Megatron's TransformerConfig, over those read from config.json.
    tp, pp, vpp, cp, ep, sp: see ``components.megatron.parallel.Sizes``; world_size / (tp * pp * cp) replicas share each
        batch. precision: float32 or bfloat16, of weights and activations.
    role: actor, or critic, which has a value head in the place of its output layer.
    rendezvous: tcp://host:port where rank 0 listens. device: cpu or cuda. threads: torch threads of this rank.
    optim: see ``components.megatron.optim.Optimizer``. num_steps: rollouts the schedule spans.
    algorithm: ``_target_`` node of an Algorithm. num_minibatches: optimizer steps a rollout.
    micro_batch_size: sequences a forward pass; or max_tokens: tokens a forward pass, padding among them.
    logprob_chunk: rows whose logits are there at once. recompute: see ``components.megatron.recompute``.
    temperature, banned_tokens: of the rollout.
    timeout_s: bound of every collective wait.
    max_logprob_gap: bound on the mean |trainer - engine| logprob. bucket_mb: MiB of one weight message.
    """

    def __init__(
        self,
        *,
        hf_checkpoint: str,
        family: str,
        spec: dict[str, Any],
        algorithm: dict[str, Any],
        optim: dict[str, Any],
        num_steps: int,
        rendezvous: str,
        freeze: Sequence[str] = (),
        train_only: Sequence[str] = (),
        role: str = "actor",
        transformer: dict[str, Any] | None = None,
        tp: int = 1,
        pp: int = 1,
        vpp: int = 1,
        cp: int = 1,
        ep: int = 1,
        sp: bool = False,
        precision: str = "float32",
        rank: int = 0,
        world_size: int = 1,
        device: str = "cpu",
        micro_batch_size: int = 32,
        max_tokens: int | None = None,
        logprob_chunk: int = 1024,
        recompute: str = "none",
        num_minibatches: int = 1,
        temperature: float = 1.0,
        banned_tokens: Sequence[int] = (),
        seed: int = 0,
        timeout_s: float = 300.0,
        threads: int = 1,
        max_logprob_gap: float = 0.05,
        bucket_mb: float = 256.0,
    ) -> None:
        self.hf_checkpoint = hf_checkpoint
        self.family = family
        self.spec = spec
        self.algorithm = algorithm
        self.optim = optim
        self.updates = max(1, num_steps * num_minibatches)
        self.rendezvous = rendezvous
        self.freeze, self.train_only = list(freeze), list(train_only)
        if role not in ROLES:
            raise ComponentError(f"trainer: role={role}; choose one of {', '.join(ROLES)}")
        self.critic = role == "critic"
        self.transformer = dict(transformer or {})
        self.sizes = Sizes(tp=tp, pp=pp, vpp=vpp, cp=cp, ep=ep, sp=sp)
        self.precision, self.rank, self.world_size = precision, rank, world_size
        self.platform = load_platform(device)
        self.micro_batch_size = micro_batch_size
        self.max_tokens = max_tokens
        self.logprob_chunk = logprob_chunk
        self.recompute = recompute
        self.num_minibatches = num_minibatches
        self.temperature = temperature
        self.banned_tokens = tuple(banned_tokens)
        self.seed = seed
        self.timeout_s = timeout_s
        self.threads = threads
        self.max_logprob_gap = max_logprob_gap
        self.bucket_bytes = bucket_mb * 2**20
        self._started = False
        self._parts: Parts | None = None
        self._sender = Sender()
        self._writing: Writing | None = None
        self._failure: str | None = None

    @classmethod
    def preflight(cls, args: Mapping[str, Any]) -> Findings:
        """See ``components.megatron.preflight``."""
        from components.megatron.preflight import preflight

        return preflight(args)

    def start(self, needs: Needs) -> Provides:
        """Join the other ranks, build and load the model; rank 0 connects to each ``needs["weight_sink"]``.

        Raises ComponentError for a checkpoint, spec or setting that does not fit, DeadlineError for absent ranks.
        """
        from components.megatron.setup import build_parts

        self._set_threads()
        self._started = True
        self._parts = build_parts(self)
        if self.rank == 0:
            self._sender.connect(needs.get("weight_sink", ()))
        return {}

    def train(self, step: int, samples: list[Sample]) -> Metrics:
        """``num_minibatches`` optimizer steps over the rollout's samples.

        A step without any token that counts is skipped (``train/skipped_steps``): weights, moments and the learning
        rate's schedule stay where they are.
        The loss of an optimizer step is the sum over its counted tokens divided by their number, however it is cut.
        Raises LogprobGapError before any update when trainer and engine disagree, ComponentError for a loss or gradient
        that is not finite or for samples that do not fit together.
        """
        parts = self._acting("trained")
        from components.megatron.training import train

        self._set_threads()
        try:
            return train(parts, step, samples, self.num_minibatches, self.max_logprob_gap)
        except LaunchError as error:
            self._failure = str(error)
            raise

    def sync(self, version: int) -> Metrics:
        """Send the decoder's weights to every sink in buckets; the towers are frozen, the engines have them already."""
        from components.megatron.weights import buckets

        self._set_threads()
        return self._sender.send(
            buckets(self._acting("sent to engines").weights.export(encoders=False), self.bucket_bytes), version
        )

    def save_hf(self, folder: str) -> None:
        """Write a whole Hugging Face checkpoint; ``folder`` is the old one or the new one, never a torn one."""
        from components.megatron.checkpoint import new_folder, write_checkpoint

        self._set_threads()
        parts = self._ready()
        tensors = parts.weights.export_as(parts.checkpoint.names)
        if self.rank != 0:
            list(tensors)
            return
        with new_folder(Path(folder)) as fresh:
            write_checkpoint(fresh, parts.checkpoint, tensors)

    def save(self, folder: str) -> None:
        """Collective. Copy the training state and start to write it into an empty folder; ``finish_save`` ends it.

        Raises ComponentError when a save is under way already, or the disk refuses.
        """
        from components.megatron.dist_checkpoint import Writing
        from components.megatron.state import shards

        self._set_threads()
        parts = self._ready()
        if self._writing is not None:
            raise ComponentError(f"trainer: cannot save into {folder} while a save is under way; finish that first")
        self._writing = Writing(Path(folder), shards(parts.chunks, parts.optimizer, self.platform.device))

    def finish_save(self, wait: bool) -> Manifest | None:
        """Collective. The files of the save under way once it is complete; None while a rank writes, unless ``wait``.

        Raises ComponentError when a rank could not write.
        """
        if self._writing is None:
            raise ComponentError("trainer: no save is under way; call save first")
        writing, self._writing = self._writing, None
        files = writing.finish(wait)
        if files is None:
            self._writing = writing
        return files

    def load(self, folder: str, weights_only: bool = False) -> Restored:
        """Collective. Go on from a saved training state of any layout, or start from its weights alone.

        Raises ComponentError, nothing read, for a folder that is torn, altered or not only ours: its format is pickle;
        and for one that does not fit this model.
        """
        from components.megatron.state import restore

        self._set_threads()
        parts = self._ready()
        updates, rng = restore(Path(folder), parts.chunks, parts.optimizer, self.platform.device, weights_only)
        return Restored(updates, rng)

    def failure(self) -> str | None:
        """What made ``train`` stop, if anything did."""
        return self._failure

    def stop(self) -> None:
        """Leave the engines and the other ranks."""
        self._sender.close()
        self._writing = None
        if self._parts is not None:
            from components.megatron.build import let_go

            let_go(self._parts.chunks)
        if self._started:
            from components.megatron.parallel import leave_world

            self._parts, self._started = None, False
            leave_world()

    def _ready(self) -> Parts:
        if self._parts is None:
            raise ComponentError("trainer: call start first")
        return self._parts

    def _acting(self, what: str) -> Parts:
        if self.critic:
            raise ComponentError(f"trainer: a critic is not {what}: no algorithm here learns values")
        return self._ready()

    def _set_threads(self) -> None:
        # OpenMP keeps the count per calling thread, and an actor's calls may come on different ones.
        import torch

        torch.set_num_threads(self.threads)
