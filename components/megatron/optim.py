"""Megatron's optimizer and learning-rate schedule. Imports Megatron."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from megatron.core import optimizer
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer, get_standard_config_overrides
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler, get_canonical_lr_for_logging

from slime_launch.errors import ComponentError

FIELDS = frozenset(
    ("lr", "min_lr", "warmup_steps", "weight_decay", "beta1", "beta2", "eps", "clip_grad", "schedule", "distributed"),
)
SCHEDULES = ("constant", "linear", "cosine")


class Optimizer:
    """AdamW with clipped gradients and a schedule over ``updates`` updates.

    optim: lr, min_lr, warmup_steps (updates), weight_decay (matrices only), beta1, beta2, eps, clip_grad (norm; 0 turns
    it off), schedule (constant, linear or cosine: from lr to min_lr after the warm-up), distributed (moments and main
    weights split over data-parallel ranks).
    """

    def __init__(self, chunks: list[Any], optim: Mapping[str, Any], updates: int) -> None:
        check_optim(optim)
        config = OptimizerConfig(
            optimizer="adam",
            lr=optim["lr"],
            min_lr=optim["min_lr"],
            weight_decay=optim["weight_decay"],
            adam_beta1=optim["beta1"],
            adam_beta2=optim["beta2"],
            adam_eps=optim["eps"],
            clip_grad=optim["clip_grad"],
            bf16=chunks[0].config.bf16,
            params_dtype=chunks[0].config.params_dtype,
            use_distributed_optimizer=optim["distributed"],
        )
        self._chunks = chunks
        self._megatron = get_megatron_optimizer(
            config, chunks, get_standard_config_overrides(config), use_gloo_process_groups=False
        )
        _fuse(self._megatron)
        self._schedule = OptimizerParamScheduler(
            self._megatron,
            init_lr=0.0,
            max_lr=optim["lr"],
            min_lr=optim["min_lr"],
            lr_warmup_steps=optim["warmup_steps"],
            # update k trains at place k, so min_lr lies one place behind the last; a shorter run ends while it warms up
            lr_decay_steps=max(updates, optim["warmup_steps"]) + 1,
            lr_decay_style=optim["schedule"],
            start_wd=optim["weight_decay"],
            end_wd=optim["weight_decay"],
            wd_incr_steps=updates,
            wd_incr_style="constant",
        )

    @property
    def updates(self) -> int:
        """Updates done, those before a resume among them."""
        return int(self._schedule.num_steps)

    def shards(self, weights: Mapping[str, Any], metadata: Mapping[str, Any], loading: bool = False) -> dict[str, Any]:
        """Adam's moments as shards beside those of the weights; ``loading`` makes room for them first.

        weights: the model's sharded state dict. metadata: as the model got it.
        """
        tree: dict[str, Any] = self._megatron.sharded_state_dict(weights, is_loading=loading, metadata=dict(metadata))
        return tree

    def restore(self, tree: dict[str, Any] | None, updates: int) -> None:
        """Go on after ``updates`` updates with the moments of ``tree`` (None: none was done).

        Learning rate, decay and betas stay those of this optimizer's config, not those of the run that saved.
        """
        if tree is not None:
            mine = [_settings(group) for group in self._megatron.param_groups]
            tree = _of_this_layout(tree, self._megatron, updates)
            if optimizer.USING_PYTORCH_OPTIMIZER:
                _fill_in_step(tree, updates)
            self._megatron.load_state_dict(tree)
            for group, settings in zip(self._megatron.param_groups, mine, strict=True):
                group.update(settings)
        else:
            self.reload()
        self._schedule.num_steps = 0
        self._schedule.step(updates)

    def reload(self) -> None:
        """Take the model's weights anew where this optimizer keeps float32 copies of them."""
        self._megatron.reload_model_params()

    def zero_grad(self) -> None:
        """Forget the last gradients."""
        for chunk in self._chunks:
            chunk.zero_grad_buffer()
        self._megatron.zero_grad()

    def update(self) -> tuple[float, float]:
        """One update with this update's place in the schedule; returns (gradient norm before clipping, learning rate).

        Raises ComponentError, the weights untouched, when the gradient is not finite.
        """
        self._schedule.step(1)
        self._megatron.prepare_grads()
        norm = float(self._megatron.get_grad_norm())
        if not math.isfinite(norm):
            raise ComponentError(f"trainer: the gradient norm is {norm}; lower trainer.optim.lr or look at the samples")
        self._megatron.step()
        return norm, float(get_canonical_lr_for_logging(self._megatron.param_groups) or 0.0)


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group's values without its parameters."""
    return {key: group[key] for key in group if key != "params"}


def _of_this_layout(tree: dict[Any, Any], megatron: Any, updates: int) -> dict[Any, Any]:
    """What was read, without the part that only the layout that saved it has, and with what only this one has.

    Experts have an optimizer of their own where ranks share them (and where there are any), else they have none. The
    moments go by the names of weights, and fit; the groups' values lie beside them, by optimizer.
    """
    parts = getattr(megatron, "chained_optimizers", [megatron])
    if len(parts) == 1:
        mine = {key: tree[key] for key in tree if not isinstance(key, int)}
        trees = [mine]
    else:
        mine = {number: tree[number] for number in range(len(parts))}
        trees = list(mine.values())
    for part, some in zip(parts, trees, strict=True):
        read = some.get("optimizer", some)
        if "param_groups" in read:
            read.setdefault("state", {})  # a stage without experts has no moments of any
        for group, own in zip(read.get("param_groups", []), part.param_groups, strict=False):
            group |= _settings(own) | ({} if optimizer.USING_PYTORCH_OPTIMIZER else {"step": updates}) | group
    return mine


def _fill_in_step(tree: dict[str, Any], updates: int) -> None:
    """Megatron keeps torch's step with the values of rank 0, which has none where its stage is frozen."""
    if "state" in tree and "param_groups" in tree:
        tree["state"].setdefault("common_step", torch.tensor(float(updates)))
        return
    for part in tree.values():
        if isinstance(part, dict):
            _fill_in_step(part, updates)


def _fuse(megatron: Any) -> None:
    """torch's AdamW in one pass over each tensor; those of Apex and Transformer Engine are fused as they are."""
    for part in getattr(megatron, "chained_optimizers", [megatron]):
        inner = getattr(part, "optimizer", None)
        if isinstance(inner, torch.optim.AdamW):
            for group in inner.param_groups:
                group["fused"] = True


def check_optim(optim: Mapping[str, Any]) -> None:
    """Raises ComponentError for a missing or unknown field or values that no schedule can have."""
    if set(optim) != FIELDS:
        raise ComponentError(
            f"trainer.optim: missing {sorted(FIELDS - set(optim))}, unknown {sorted(set(optim) - FIELDS)}"
        )
    if optim["distributed"] and optimizer.USING_PYTORCH_OPTIMIZER:
        raise ComponentError(
            "trainer.optim.distributed: Megatron-Core 0.16.1 cannot load torch's Adam from a checkpoint of it; install "
            "transformer_engine or apex, whose fused Adam it takes, or set it to false"
        )
    if optim["schedule"] not in SCHEDULES:
        raise ComponentError(f"trainer.optim.schedule={optim['schedule']}: choose one of {', '.join(SCHEDULES)}")
    if not 0 <= optim["min_lr"] <= optim["lr"]:
        raise ComponentError(f"trainer.optim: need 0 <= min_lr={optim['min_lr']} <= lr={optim['lr']}")
    if optim["warmup_steps"] < 0:
        raise ComponentError(f"trainer.optim.warmup_steps={optim['warmup_steps']}: must not be negative")
