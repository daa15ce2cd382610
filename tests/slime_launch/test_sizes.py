"""Sizes from config.json against the real thing: transformers' models, Megatron's tensors, SGLang's rules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slime_launch.errors import ConfigError
from slime_launch.paths import COMPONENTS
from slime_launch.sizes import (
    ARCHITECTURES,
    PRECISIONS,
    Batch,
    Layout,
    Parameters,
    activations,
    engine_bytes,
    engine_weights,
    kv_bytes_per_token,
    parameters,
    pool_tokens,
    trainer_bytes,
)
from slime_launch.sizes.memory import stage_tensors
from tests.components.megatron.helpers import ROOT, trainer_settings, write_random

FILES = sorted((COMPONENTS / "models").glob("*/configs/*.json"))
REAL = {file.stem: file for file in FILES if file.stem != "tiny"}
GB = 10**9
WITHIN = 0.15
PUBLISHED = {
    "qwen3-0.6b": (0.6, 0.6),
    "qwen3-4b": (4.0, 4.0),
    "qwen3-32b": (32.8, 32.8),
    "qwen3-30b-a3b": (30.5, 3.3),
    "qwen3-235b-a22b": (235, 22),
    "glm-4.5": (355, 32),
    "glm-4.5v": (107.7, 12),
    "glm-4.1v-9b-thinking": (10.3, 9.4),
    "qwen2.5-vl-7b-instruct": (8.29, 7.6),
}
"""Billions of parameters on the model cards: all, and active for one token of text.

GLM-4.5 is 352.8 without its layer of multi-token prediction; with embedding and head 33.6 are active, and 13.4 of
GLM-4.5V.
"""


def read(file: Path) -> dict[str, Any]:
    hf: dict[str, Any] = json.loads(file.read_text())
    return hf


def built(hf: dict[str, Any]) -> int:
    """Parameters of the model that transformers builds, without memory for them."""
    import torch
    import transformers

    model_class = getattr(transformers, hf["architectures"][0])
    with torch.device("meta"):
        model = model_class(model_class.config_class.from_dict(json.loads(json.dumps(hf))))
    return sum(parameter.numel() for parameter in model.parameters())


def sized(hf: dict[str, Any]) -> Parameters:
    found = parameters(hf)
    assert found is not None
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parts[-3]}-{file.stem}")
def test_a_shipped_config_counts_as_transformers_builds_it(file: Path) -> None:
    assert sized(read(file)).total == built(read(file))


@pytest.mark.parametrize("name", REAL)
def test_a_real_config_loads_and_says_what_transformers_reads(name: str) -> None:
    import transformers

    hf = read(REAL[name])
    config = getattr(transformers, hf["architectures"][0]).config_class.from_pretrained(REAL[name])

    def compare(said: dict[str, Any], loaded: Any) -> None:
        for key, value in said.items():
            if key.endswith("_config"):
                compare(value, getattr(loaded, key))
            elif key == "dtype":
                assert str(loaded.dtype) == f"torch.{value}"
            else:
                got = getattr(loaded, key)
                assert (list(got) if isinstance(value, list) else got) == value, key

    compare(hf, config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_real_config_has_the_published_size(name: str) -> None:
    total, active = PUBLISHED[name]
    counts = sized(read(REAL[name])).counts
    assert counts.total / GB == pytest.approx(total, rel=0.01)
    assert counts.active / GB == pytest.approx(active, rel=0.12)


def test_every_real_config_is_compared_with_its_published_size() -> None:
    assert REAL.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_silent_config_has_transformers_defaults(architecture: str) -> None:
    hf = {"architectures": [architecture]}
    assert sized(hf).total == built(hf)


def shapes(architecture: str) -> st.SearchStrategy[dict[str, Any]]:
    """Small config.json files of one architecture, every key that its size depends on drawn or left out."""
    row = ARCHITECTURES[architecture]

    def drawn(key: str, default: Any) -> st.SearchStrategy[Any]:
        if isinstance(default, bool):
            return st.booleans()
        special = {
            "num_hidden_layers": st.integers(0, 4),
            "num_attention_heads": st.sampled_from([4, 8]),
            "num_key_value_heads": st.sampled_from([1, 2, 4]),
            "hidden_size": st.sampled_from([64, 96]),
            "head_dim": st.sampled_from([8, 16, 20]),
            "first_k_dense_replace": st.integers(0, 4),
            "n_shared_experts": st.integers(0, 2),
            "decoder_sparse_step": st.integers(1, 3),
            "mlp_only_layers": st.lists(st.integers(0, 3), max_size=2),
            "depth": st.integers(0, 3),
            "spatial_merge_size": st.integers(1, 2),
            "partial_rotary_factor": st.just(0.5),
        }
        return special.get(key, st.integers(2, 40))

    def part(reads: Any, always: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
        values = {key: drawn(key, default) for key, default in reads.items()}
        required = {key: value for key, value in values.items() if key in always or not isinstance(reads[key], bool)}
        return st.fixed_dictionaries(required, optional={key: values[key] for key in values.keys() - required.keys()})

    # GLM's default padding token lies outside a small vocabulary.
    text = part(row.reads, ()).map(lambda keys: keys | {"pad_token_id": None})
    common = {"architectures": st.just([architecture]), "tie_word_embeddings": st.booleans()}
    if not row.vision:
        return st.builds(lambda flat, top: flat | top, text, st.fixed_dictionaries(common))
    vision = part(row.vision, ())
    return st.fixed_dictionaries(common | {"text_config": text, "vision_config": vision})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_small_shape_counts_as_transformers_builds_it(architecture: str) -> None:
    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
    @given(hf=shapes(architecture))
    def holds(hf: dict[str, Any]) -> None:
        found = sized(hf)
        assert found.total == built(hf)
        counts = found.counts
        layers = counts.num_dense_layers * counts.dense_layer
        layers += counts.num_moe_layers * (counts.moe_layer_experts + counts.moe_layer_rest)
        around = counts.embedding + counts.final_norm + counts.lm_head + counts.encoder
        assert layers + around == counts.total

    holds()


def test_a_tied_embedding_counts_once() -> None:
    hf = read(REAL["qwen3-0.6b"])
    tied, apart = sized(hf), sized(hf | {"tie_word_embeddings": False})
    assert tied.counts.lm_head == 0
    assert apart.total - tied.total == 151936 * 1024


def test_a_tied_embeddings_copy_goes_by_its_name() -> None:
    last = stage_tensors(sized(read(REAL["qwen3-0.6b"])), 1, Layout(pp=2))
    sizes = {tensor.name: tensor.size for _, tensors in last for tensor in tensors}
    assert sizes["embedding.word_embeddings.weight"] == 151936 * 1024 and "output_layer.weight" not in sizes


def test_flat_and_nested_multimodal_configs_count_alike() -> None:
    """Qwen2.5-VL's published config.json keeps the text part at its root."""
    hf = read(REAL["qwen2.5-vl-7b-instruct"])
    flat = hf | {key: value for key, value in hf["text_config"].items() if key not in ("model_type", "dtype")}
    del flat["text_config"]
    assert sized(flat).total == sized(hf).total == built(flat)


@pytest.mark.parametrize("hf", [{}, {"architectures": None}, {"architectures": ["MambaForCausalLM"]}])
def test_an_unknown_architecture_has_no_size(hf: dict[str, Any]) -> None:
    assert parameters(hf) is None


@pytest.mark.parametrize("wrong", [{"hidden_size": "big"}, {"num_hidden_layers": -1}, {"num_attention_heads": 0}])
def test_sizes_that_are_no_sizes_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        parameters(read(REAL["qwen3-0.6b"]) | wrong)


# Real tensors.

MEDIUM = {
    "vocab_size": 16384,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
SMALL = {"vocab_size": 2048, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}
FROZEN = [r"^encoders\.", r"layers\.0\.self_attention\.linear_qkv"]
SOLO: dict[str, dict[str, Any]] = {
    "medium": {"family": "qwen3", "shape": MEDIUM, "batch": (4, 60, 68)},
    "long-rows": {"family": "qwen3", "shape": SMALL, "batch": (2, 600, 20)},
    "experts": {"family": "qwen3_moe", "shape": SMALL | {"moe_intermediate_size": 256}, "batch": (4, 60, 68)},
}
PAIRS: dict[str, dict[str, Any]] = {
    "tied-tp2": {"family": "qwen3", "shape": SMALL | {"tie_word_embeddings": True}, "layout": {"tp": 2}},
    "tied-pp2": {"family": "qwen3", "shape": SMALL | {"tie_word_embeddings": True}, "layout": {"pp": 2}},
    "tied-cp2": {"family": "qwen3", "shape": SMALL | {"tie_word_embeddings": True}, "layout": {"cp": 2}},
    "frozen-tp2": {"family": "glm_omni", "shape": SMALL, "layout": {"tp": 2}, "freeze": FROZEN},
    "frozen-pp2": {"family": "glm_omni", "shape": SMALL, "layout": {"pp": 2}, "freeze": FROZEN},
}
BATCH = (4, 40, 24)


def run_ranks(folder: Path, jobs: dict[str, dict[str, Any]], ranks: int) -> list[dict[str, dict[str, int]]]:
    """What each rank measured of each job, in processes of their own."""
    file = folder / "jobs.json"
    for name, job in jobs.items():
        shape, family = dict(job["shape"]), job["family"]
        if family == "glm_omni":
            shape["vision_config"] = {"out_hidden_size": shape["hidden_size"]}
            shape["rope_parameters"] = {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [4, 6, 6],
            }
        write_random(folder / name, family, **shape)
        extra = {**job.get("layout", {}), "freeze": job.get("freeze", []), "world_size": ranks}
        made = trainer_settings(folder / name, family, **extra)
        jobs[name] = job | {"settings": made, "batch": job.get("batch", BATCH)}
    file.write_text(json.dumps(jobs))
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.slime_launch.sizes_worker", str(file)]
    world = [subprocess.Popen([*command, str(rank)], cwd=ROOT, env=env) for rank in range(ranks)]
    try:
        assert [process.wait(timeout=240) for process in world] == [0] * ranks
    finally:
        for process in world:
            process.kill()
    return [json.loads(Path(f"{file}.{rank}.answers").read_text()) for rank in range(ranks)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, int]]]:
    folder = tmp_path_factory.mktemp("alone")
    return folder, run_ranks(folder, dict(SOLO), 1)[0]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, dict[str, int]]]]:
    folder = tmp_path_factory.mktemp("pairs")
    return folder, run_ranks(folder, dict(PAIRS), 2)


def batch_of(rows: int, prompt: int, response: int) -> Batch:
    return Batch(rows=rows, length=prompt + response, scored=rows * response, in_flight=1)


@pytest.mark.parametrize("name", SOLO)
def test_a_trainer_takes_what_is_estimated(name: str, alone: tuple[Path, dict[str, dict[str, int]]]) -> None:
    folder, measured = alone
    batch = batch_of(*SOLO[name]["batch"])
    model = sized(read(folder / name / "config.json"))
    memory = trainer_bytes(model, Layout(), batch=batch)
    real = measured[name]
    assert memory.weights == real["weights"]
    assert memory.gradients == pytest.approx(real["gradients"], rel=WITHIN)
    assert memory.optimizer == pytest.approx(real["optimizer"], rel=WITHIN)
    kept = activations(model.shape, batch, Layout(), PRECISIONS["fp32"]).kept
    assert kept == pytest.approx(real["kept"], rel=WITHIN)


def test_the_medium_model_is_medium() -> None:
    hf = {"architectures": ["Qwen3ForCausalLM"], "tie_word_embeddings": False} | MEDIUM
    assert 50_000_000 < sized(hf).total < 100_000_000


@pytest.mark.parametrize("name", PAIRS)
def test_the_worst_of_two_ranks_takes_what_is_estimated(
    name: str, pairs: tuple[Path, list[dict[str, dict[str, int]]]]
) -> None:
    folder, ranks = pairs
    job, batch = PAIRS[name], batch_of(*BATCH)
    model, layout = sized(read(folder / name / "config.json")), Layout(**job["layout"])
    memory = trainer_bytes(model, layout, batch=batch, frozen=job.get("freeze", []))
    real = max((rank[name] for rank in ranks), key=lambda rank: sum(rank.values()))
    for part in ("weights", "gradients", "optimizer"):
        assert getattr(memory, part) == pytest.approx(real[part], rel=WITHIN), part
    for stage in range(layout.pp):
        kept = activations(model.shape, batch, layout, PRECISIONS["fp32"], stage).kept
        assert kept == pytest.approx(ranks[stage][name]["kept"], rel=WITHIN)


# Rules.


def test_sixteen_and_eighteen_bytes_a_trained_number_and_the_weight_alone_of_a_frozen_one() -> None:
    model = sized(read(REAL["qwen3-32b"]))
    assert trainer_bytes(model, Layout()).total == 16 * model.total
    assert trainer_bytes(model, Layout(), precision="bf16").total == 18 * model.total
    shared = trainer_bytes(model, Layout(dp=4), precision="bf16", distributed_optimizer=True)
    assert shared.total == pytest.approx((2 + 4 + 12 / 4) * model.total, rel=1e-6)
    assert trainer_bytes(model, Layout(), frozen=["."], precision="bf16").total == 2 * model.total


def test_the_worst_stage_holds_the_embedding_or_the_head() -> None:
    model = sized(read(REAL["qwen3-4b"]))
    quarter = trainer_bytes(model, Layout(pp=4)).weights
    assert quarter == 4 * (9 * model.counts.dense_layer + model.counts.embedding + model.counts.final_norm)


def test_expert_ranks_share_the_experts_alone() -> None:
    model = sized(read(REAL["qwen3-30b-a3b"]))
    experts = model.counts.num_moe_layers * model.counts.moe_layer_experts
    alone, shared = (trainer_bytes(model, Layout(dp=8, ep=ep), precision="bf16").weights for ep in (1, 8))
    assert alone - shared == 2 * (experts - experts // 8)


def test_recomputation_keeps_less() -> None:
    shape = sized(read(REAL["qwen3-4b"])).shape
    batch = Batch(rows=1, length=4096, scored=0)
    kept = [
        activations(shape, batch, Layout(), PRECISIONS["bf16"], recompute=how).kept
        for how in ("none", "selective", "full")
    ]
    assert kept[0] > 2 * kept[1] > 4 * kept[2]
    assert kept[2] == (36 * 2560 * 2 + 2560 * 2 * 2) * 4096


def test_the_kv_cache_of_one_token() -> None:
    shape = sized(read(REAL["qwen3-32b"])).shape
    assert kv_bytes_per_token(shape, Layout(), 2) == 64 * 8 * 128 * 2 * 2
    assert kv_bytes_per_token(shape, Layout(tp=8), 2) == kv_bytes_per_token(shape, Layout(tp=16), 2) == 64 * 128 * 2 * 2


def test_the_pool_is_what_the_weights_leave_and_no_more_than_asked() -> None:
    assert pool_tokens(100, 0, 1000, None, None) == 1000
    assert pool_tokens(100, 30_000, None, 100_000, 0.8) == 500
    assert pool_tokens(100, 30_000, 400, 100_000, 0.8) == 400
    assert pool_tokens(100, 90_000, None, 100_000, 0.8) == 0


def test_who_holds_the_tower() -> None:
    """A language-only worker has it; an encoder-only server of GLM-4V has the decoder too, Qwen2.5-VL's has not."""
    qwen, glm = (sized(read(REAL[name])) for name in ("qwen2.5-vl-7b-instruct", "glm-4.1v-9b-thinking"))
    for model in (qwen, glm):
        assert engine_bytes(model, Layout(), weight_bytes=2).weights == 2 * model.total
    assert engine_weights(qwen, Layout(), 2, encoder_only=True) == 2 * qwen.counts.encoder
    assert engine_weights(glm, Layout(), 2, encoder_only=True) == 2 * glm.total
    assert engine_bytes(glm, Layout(), weight_bytes=2, max_total_tokens=4096, encoder_only=True).kv_cache == 0


@pytest.mark.parametrize("name", REAL)
def test_ranks_together_hold_at_least_the_model(name: str) -> None:
    model = sized(read(REAL[name]))
    for layout in (Layout(tp=2), Layout(tp=4, pp=2), Layout(pp=4)):
        ranks = layout.tp * layout.pp
        assert ranks * engine_weights(model, layout, 1) >= model.total
        assert ranks * trainer_bytes(model, layout).weights >= 4 * model.total
