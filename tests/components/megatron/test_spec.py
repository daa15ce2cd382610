"""The callable layer spec: every kind of answer, actor and critic, specs written for slime, wrong answers, freezing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from components.megatron.trainer import MegatronTrainer
from slime_launch.errors import ComponentError, LaunchError
from tests.components.megatron import specs
from tests.components.megatron.helpers import hf_model, make_sample, random_samples, trainer_settings, write_random

SPECS = "tests.components.megatron.specs."
SLIME = {"_target_": "components.models.slime_spec.adapt"}
KINDS: dict[str, dict[str, Any]] = {
    "a ModuleSpec": {"_target_": SPECS + "layers"},
    "block submodules": {"_target_": SPECS + "block_spec"},
    "a provider": {"_target_": SPECS + "provider"},
    "a provider of a language_model": {"_target_": SPECS + "language_model_provider"},
    "slime's layers": SLIME | {"spec": SPECS + "slime_layers"},
    "slime's provider": SLIME | {"spec": SPECS + "slime_provider", "args": {"position_embedding": "rope"}},
}
SHAPES = {"qwen3": {"num_hidden_layers": 2}, "tied": {"tie_word_embeddings": True, "vocab_size": 113}}
Start = Callable[..., MegatronTrainer]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("specs")
    return {name: write_random(root / name, "qwen3", **shape) for name, shape in SHAPES.items()}


@pytest.fixture
def start(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setenv("SLIME_LAUNCH_ALLOW_TARGETS", "tests")
    running: list[MegatronTrainer] = []

    def begin(shape: str = "qwen3", **overrides: Any) -> MegatronTrainer:
        trainer = MegatronTrainer(**trainer_settings(folders[shape], "qwen3", **overrides))
        running.append(trainer)
        trainer.start({})
        return trainer

    yield begin
    for trainer in running:
        trainer.stop()


def outputs(trainer: MegatronTrainer) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids [1, S], what the model gives for them [1, S, ...])."""
    parts = trainer._ready()
    sample = make_sample(0, 0, list(range(20, 40)), [7, 9])
    (batch,) = parts.batcher.cut([sample], torch.zeros(1), 0, 1)
    with torch.no_grad():
        return batch.inputs["input_ids"], parts.chunks[0](**batch.inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_answer_gives_the_model(kind: str, folders: dict[str, Path], start: Start) -> None:
    ids_BS, logits_BSV = outputs(start(spec=KINDS[kind]))
    with torch.no_grad():
        expected_BSV = hf_model(folders["qwen3"], "qwen3")(ids_BS).logits
    assert (logits_BSV - expected_BSV).abs().max() <= 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_critic_has_a_value_head_whatever_the_answer(
    kind: str, shape: str, folders: dict[str, Path], start: Start
) -> None:
    seed = 5
    ids_BS, values_BS1 = outputs(start(shape, spec=KINDS[kind], role="critic", seed=seed))
    with torch.no_grad():
        hidden_BSD = hf_model(folders[shape], "qwen3").model(ids_BS).last_hidden_state
        generator = torch.Generator().manual_seed(seed)
        head_1D = torch.empty(1, hidden_BSD.shape[-1]).normal_(0.0, 0.02, generator=generator)
        expected_BS1 = hidden_BSD @ head_1D.T
    assert values_BS1.dtype == torch.float32 and values_BS1.shape == (*ids_BS.shape, 1)
    assert (values_BS1 - expected_BS1).abs().max() <= 1e-5


def test_the_head_follows_init_method_std(start: Start) -> None:
    trainer = start(role="critic", transformer={"init_method_std": 0.5})
    (weight,) = [value for name, value in trainer._ready().weights.tensors.items() if name == "output_layer.weight"]
    assert float(weight.detach().std()) == pytest.approx(0.5, rel=0.2)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_critic_exports_the_checkpoint_without_its_head(
    shape: str, folders: dict[str, Path], start: Start, tmp_path: Path
) -> None:
    trainer = start(shape, role="critic")
    trainer.save_hf(str(tmp_path / "saved"))
    before, after = (load_file(folder / "model.safetensors") for folder in (folders[shape], tmp_path / "saved"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    for call in (lambda: trainer.train(0, random_samples("qwen3")), lambda: trainer.sync(1)):
        with pytest.raises(ComponentError, match="critic"):
            call()


@pytest.mark.parametrize(
    ("spec", "returned"),
    [
        ("nothing", "returned None"),
        ("a_class", "returned the class"),
        ("built_model", "returned a built Linear"),
        ("demanding_provider", "cannot be called as a model provider (missing a required argument: 'args')"),
        ("empty_provider", "its model provider built None"),
    ],
)
def test_wrong_answers_are_named_with_what_is_allowed(spec: str, returned: str, start: Start) -> None:
    with pytest.raises(ComponentError) as caught:
        start(spec={"_target_": SPECS + spec})
    assert returned in str(caught.value) and SPECS + spec in str(caught.value)
    assert ("ModuleSpec" in str(caught.value)) != (spec == "empty_provider")


def test_attention_that_cannot_share_rows_is_refused(start: Start) -> None:
    config = copy.copy(start()._ready().chunks[0].module.config)
    config.context_parallel_size = 2
    from megatron.core.transformer.enums import AttnMaskType

    from components.megatron.spec import build_stage
    from components.models.attention import TorchAttention

    with pytest.raises(
        ComponentError, match=r"model\.spec=mine: its model provider fails: Context parallelism is only"
    ):
        build_stage({"_target_": "mine"}, specs.provider(config, None), config, None)
    config.window_size = (4, 0)
    with pytest.raises(ComponentError, match=r"cp=2: attention with sinks or windows .* on whole rows only; set it to"):
        TorchAttention(config, 1, AttnMaskType.causal, "self")


def test_slimes_specs_pass_the_same_door(start: Start) -> None:
    with pytest.raises(LaunchError, match=r"os\.system: only objects of"):
        start(spec=SLIME | {"spec": "os.system"})


def test_train_only_is_the_complement_of_freeze(folders: dict[str, Path], start: Start, tmp_path: Path) -> None:
    trainer = start(train_only=[r"layers\.1\.mlp\.", "final_layernorm"])
    trainer.train(0, random_samples("qwen3"))
    trainer.save_hf(str(tmp_path / "saved"))
    before, after = (load_file(folder / "model.safetensors") for folder in (folders["qwen3"], tmp_path / "saved"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".layers.1.mlp." in name or name == "model.norm.weight"}


def test_the_last_stages_copy_of_an_embedding_is_frozen_with_it(start: Start) -> None:
    start()  # patterns are matched over all ranks of a world
    from components.megatron.build import freeze

    copy, norm = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    copy.shared = True  # Megatron's mark
    last_stage = {"output_layer.weight": copy, "decoder.final_layernorm.weight": norm}
    with pytest.raises(ComponentError, match="match no parameter"):  # as on one rank, which has no copy
        freeze(last_stage, ["output_layer"])
    freeze(last_stage, ["embedding"])
    assert not copy.requires_grad and norm.requires_grad


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({"train_only": ["decoder", "no_such_thing"]}, r"model\.train_only: \['no_such_thing'\] match no parameter"),
        ({"train_only": ["decoder"], "freeze": ["embedding"]}, "exclude each other"),
    ],
)
def test_wrong_patterns_are_refused(patterns: dict[str, Any], message: str, start: Start) -> None:
    with pytest.raises(ComponentError, match=message):
        start(**patterns)
