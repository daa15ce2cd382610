"""Random checkpoints, samples and trainers for the Megatron tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from slime_launch.machine import free_ports
from slime_launch.types import Prompt, Sample, Status, Turn, TurnImage

ROOT = Path(__file__).resolve().parents[3]
WITH_IMAGES = ("glm_omni", "glm4v_moe", "qwen2_5_vl")
OPTIM = {
    "lr": 1e-3,
    "min_lr": 0.0,
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "beta1": 0.9,
    "beta2": 0.95,
    "eps": 1e-8,
    "clip_grad": 1.0,
    "schedule": "constant",
    "distributed": False,
}


def tiny_config(family: str) -> dict[str, Any]:
    """The family's tiny config.json."""
    config: dict[str, Any] = json.loads((ROOT / "components" / "models" / family / "configs" / "tiny.json").read_text())
    return config


def model_class(config: dict[str, Any]) -> Any:
    """The class of transformers that config.json names."""
    import transformers

    return getattr(transformers, config["architectures"][0])


def hf_model(folder: Path, family: str) -> Any:
    """The checkpoint as transformers loads it."""
    return model_class(tiny_config(family)).from_pretrained(folder, attn_implementation="eager").eval()


def reference_logits(model: Any, sample: Sample) -> Any:
    """Logits [S, vocabulary] of prompt and response by transformers."""
    import torch

    ids = torch.tensor([[*sample.prompt_ids, *sample.response_ids]])
    media = all_media(sample)
    if media:
        media["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
    with torch.no_grad():
        return model(input_ids=ids, **media).logits[0]


def all_media(sample: Sample) -> dict[str, Any]:
    """Tensors of all its images, the prompt's first, as transformers' models take them."""
    import torch

    parts = [part for part in (sample.media, *(image.media for image in sample.images)) if part]
    names = parts[0] if parts else ()
    return {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in names}


def with_reference_logprobs(model: Any, samples: list[Sample], temperature: float) -> list[Sample]:
    """The samples with the logprobs that transformers' model has for them."""
    import torch

    for sample in samples:
        rows = reference_logits(model, sample)[len(sample.prompt_ids) - 1 : -1] / temperature
        chosen = rows.log_softmax(-1).gather(-1, torch.tensor(sample.response_ids)[:, None])
        sample.logprobs = chosen[:, 0].tolist()
    return samples


def write_random(folder: Path, family: str, seed: int = 0, **overrides: Any) -> Path:
    """The family's tiny config with ``overrides`` (of the text part) and random weights, norms and biases included."""
    import torch

    config = tiny_config(family)
    tied = overrides.pop("tie_word_embeddings", config["tie_word_embeddings"])
    vision = overrides.pop("vision_config", {})
    text = config.get("text_config", config)
    text |= overrides
    config["tie_word_embeddings"] = text["tie_word_embeddings"] = tied
    if vision:
        config["vision_config"] |= vision
    kind = model_class(config)
    torch.manual_seed(seed)
    model = kind(kind.config_class.from_dict(config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.add_(torch.randn_like(buffer) * 0.2)
    model.save_pretrained(folder)
    return folder


def make_sample(
    group: int, index: int, prompt: list[int], response: list[int], reward: float = 0.0, **fields: Any
) -> Sample:
    """A sample of ids; its logprobs are zero unless given."""
    given: dict[str, Any] = {"logprobs": [0.0] * len(response), "loss_mask": [1] * len(response), "media": {}} | fields
    return Sample(
        group=group,
        index=index,
        prompt=Prompt([], ""),
        prompt_text="",
        prompt_ids=prompt,
        response="",
        response_ids=response,
        status=Status.COMPLETED,
        weight_versions=[0] * len(response),
        reward=reward,
        **given,
    )


def image_prompt(
    rng: np.random.Generator, grids: list[tuple[int, int, int]], text: int, family: str = "glm_omni"
) -> tuple[list[int], dict[str, Any]]:
    """Ids and media of a prompt with images of the given patch grids between runs of ``text`` tokens."""
    config = tiny_config(family)
    before, after = (
        config.get(f"image_{end}_token_id", config.get(f"vision_{end}_token_id")) for end in ("start", "end")
    )
    ids = rng.integers(16, 112, text).tolist()
    for time, height, width in grids:
        ids += [before] + [config["image_token_id"]] * (time * height * width // 4) + [after]
        ids += rng.integers(16, 112, text).tolist()
    patches = sum(int(np.prod(grid)) for grid in grids)
    pixels = rng.standard_normal((patches, 3 * 2 * 14 * 14)).astype(np.float32)
    return ids, {"pixel_values": pixels, "image_grid_thw": np.array(grids)}


def random_samples(family: str, groups: int = 2, size: int = 4, seed: int = 0) -> list[Sample]:
    """Groups of unequal lengths, the first with too short a prompt to share; masks; images if the family has them."""
    rng = np.random.default_rng(seed)
    samples = []
    for group in range(groups):
        prompt: list[int] = rng.integers(16, 112, 4 + 20 * group).tolist()
        media: dict[str, Any] = {}
        if family in WITH_IMAGES:
            prompt, media = image_prompt(rng, [(1, 4, 4)], 1 + 10 * group, family)
        for index in range(size):
            response = rng.integers(16, 112, int(rng.integers(2, 9))).tolist()
            mask = rng.integers(0, 2, len(response)).tolist()
            mask[0] = 1
            reward = float(index % 2)
            samples.append(make_sample(group, index, prompt, response, reward, media=media, loss_mask=mask))
    return samples


def show_later(samples: list[Sample], seed: int = 0) -> list[Sample]:
    """GLM-Omni's samples, the second and later of each group shown images in later turns: the second a wide and a
    small one, the third and fourth the same small one, the fourth behind a longer answer."""
    rng = np.random.default_rng(seed)
    wide, small = (image_prompt(rng, [grid], 2) for grid in ((1, 2, 6), (1, 4, 4)))
    for sample in samples:
        for (ids, media), tokens in {1: [(wide, 3), (small, 4)], 2: [(small, 4)], 3: [(small, 4)]}.get(
            sample.index, ()
        ):
            if sample.index == 3:
                sample.add_sampled([40, 41], [0.0, 0.0], 0)
            sample.add_turn(Turn(ids, (TurnImage(b"", 3, tokens, media),)))
            sample.add_sampled([50, 51, 52], [0.0] * 3, 0)
    return samples


def trainer_settings(folder: Path, family: str, **overrides: Any) -> dict[str, Any]:
    """Keyword arguments of a MegatronTrainer; a loose gap bound, since samples are random; logits in many chunks."""
    return {
        "hf_checkpoint": str(folder),
        "family": family,
        "spec": {"_target_": f"components.models.{family}.spec.layer_spec"},
        "algorithm": {"_target_": "components.algorithms.grpo.GRPO"},
        "optim": OPTIM,
        "num_steps": 100,
        "rendezvous": f"tcp://127.0.0.1:{free_ports(1)[0]}",
        "timeout_s": 60.0,
        "micro_batch_size": 3,
        "logprob_chunk": 5,
        "max_logprob_gap": 1e9,
    } | overrides
