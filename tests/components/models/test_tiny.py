"""The tiny checkpoints: they load, templates and tokenizers round-trip, the warm start is made once and is the same."""

import io
import json
import multiprocessing
import string
import subprocess
import sys

import pytest

from components.data.digits import Digits
from components.models.glm4 import tiny as glm4
from components.models.glm_omni import tiny as glm_omni
from components.models.llama3 import tiny as llama3
from components.models.qwen2 import tiny as qwen2
from components.models.qwen2_5_vl import tiny as qwen2_5_vl
from components.models.qwen3 import tiny as qwen3
from components.models.tiny import MANIFEST, TinyCheckpoint
from slime_launch.errors import ComponentError
from slime_launch.types import Prompt
from tests.components.megatron.helpers import hf_model

MESSAGES = [{"role": "user", "content": "2 + 3\n= ?"}]
TEXT = "".join(sorted(set(string.printable) - set("\t\r\x0b\x0c")))
EXACT = {"_target_": "components.rewards.exact.Exact"}
WORDS = {
    "_target_": "components.data.reasoning_gym.ReasoningGym",
    "task": "spell_backward",
    "task_args": {"min_word_len": 3, "max_word_len": 3},
    "question": "{word}",
    "size": 200,
    "eval_size": 20,
}
QUICK = {
    "recipe": {"_target_": "components.models.qwen3.tiny.TinyQwen3"},
    "data": WORDS,
    "reward": {"_target_": "components.rewards.reasoning_gym.ReasoningGymScore"},
    "seed": 0,
    "max_new_tokens": 7,
    "score_low": 0.02,
    "score_high": 0.3,
    "num_scored": 64,
    "num_prepared": 1,
    "lr": 2e-3,
}


TINY = {
    "qwen3": qwen3,
    "glm_omni": glm_omni,
    "llama3": llama3,
    "qwen2": qwen2,
    "glm4": glm4,
    "qwen2_5_vl": qwen2_5_vl,
}
IMAGE_TOKENS = {
    glm_omni: ("<|begin_of_image|>", "<|image|>", "<|end_of_image|>"),
    qwen2_5_vl: ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>"),
}
PROMPTS = {
    qwen3: "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    qwen2: "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    qwen2_5_vl: "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    llama3: "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    glm4: "[gMASK]<sop><|user|>\n{}<|assistant|>\n",
    glm_omni: "[gMASK]<sop><|user|>\n{}<|assistant|>\n",
}


@pytest.fixture(scope="module", params=TINY.values(), ids=TINY)
def family(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    request.param.write_checkpoint(folder, 5)
    return request.param, folder


def test_shipped_config_is_the_checkpoints(family):
    module, folder = family
    shipped, written = json.loads(module.CONFIG.read_text()), json.loads((folder / "config.json").read_text())
    assert shipped["architectures"] == written["architectures"]
    assert shipped.get("vocab_size") == written.get("vocab_size")
    assert (shipped.get("text_config") or {}).items() <= (written.get("text_config") or {}).items()


def test_tokenizer_is_lossless_and_loud(family):
    from transformers import AutoConfig, AutoTokenizer

    module, folder = family
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder).get_text_config()
    ids = tokenizer(TEXT)["input_ids"]
    assert len(tokenizer) == config.vocab_size == (272 if module is qwen2 else 112)
    assert len(ids) == len(TEXT) == 96 and tokenizer.decode(ids) == TEXT
    if module is qwen2:  # bytes have no characters to refuse
        assert tokenizer.decode(tokenizer("naïve\t")["input_ids"]) == "naïve\t"
    else:
        with pytest.raises(Exception, match="vocabulary"):
            tokenizer("naïve")


def test_config_token_ids_are_the_tokenizers(family):
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    module, folder = family
    tokenizer, config = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
    if module in IMAGE_TOKENS:
        kind = "image" if hasattr(config, "image_start_token_id") else "vision"
        names = (f"{kind}_start_token_id", "image_token_id", f"{kind}_end_token_id")
        assert tokenizer.convert_tokens_to_ids(list(IMAGE_TOKENS[module])) == [getattr(config, name) for name in names]
    generation, text = GenerationConfig.from_pretrained(folder), config.get_text_config()
    assert generation.eos_token_id == tokenizer.convert_tokens_to_ids(list(module.EOS))
    assert tokenizer.eos_token_id in generation.eos_token_id
    assert text.eos_token_id in (generation.eos_token_id, tokenizer.eos_token_id)
    assert tokenizer.pad_token_id == text.pad_token_id
    assert generation.suppress_tokens == (tokenizer.convert_tokens_to_ids(list(getattr(module, "MEDIA", ()))) or None)


def test_same_seed_same_weights(family, tmp_path):
    module, folder = family
    for seed, same in ((5, True), (6, False)):
        module.write_checkpoint(tmp_path / str(seed), seed)
        written = (tmp_path / str(seed) / "model.safetensors").read_bytes()
        assert (written == (folder / "model.safetensors").read_bytes()) is same


def test_it_generates_from_its_template(family):
    from transformers import AutoTokenizer

    module, folder = family
    tokenizer, model = AutoTokenizer.from_pretrained(folder), hf_model(folder, module.__name__.split(".")[-2])
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert text == PROMPTS[module].format(MESSAGES[0]["content"])
    ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert tokenizer.decode(ids["input_ids"][0]) == text
    assert model.generate(**ids, max_new_tokens=3, eos_token_id=None).shape[1] == ids["input_ids"].shape[1] + 3


@pytest.mark.parametrize("module", IMAGE_TOKENS, ids=["glm_omni", "qwen2_5_vl"])
def test_it_sees_four_tokens_an_image_and_never_makes_one(module, tmp_path):
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    start, token, end = IMAGE_TOKENS[module]
    module.write_checkpoint(tmp_path, 0)
    processor, model = AutoProcessor.from_pretrained(tmp_path), AutoModelForImageTextToText.from_pretrained(tmp_path)
    prompt = Digits(seed=0).take(1)[0]
    text = processor.apply_chat_template(prompt.messages, tokenize=False, add_generation_prompt=True)
    assert text == PROMPTS[module].format(f"{start}{token}{end}Digit?")
    image = Image.open(io.BytesIO(prompt.images[0]))
    message = {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "Digit?"}]}
    inputs = processor.apply_chat_template(
        [message], tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    assert processor.tokenizer.decode(inputs["input_ids"][0]) == text.replace(token, token * 4)
    assert inputs["pixel_values"].shape == (16, 1176)
    made = model.generate(**inputs, do_sample=True, max_new_tokens=64, eos_token_id=None)[
        0, inputs["input_ids"].shape[1] :
    ]
    assert not set(made.tolist()) & set(processor.tokenizer.convert_tokens_to_ids(list(module.MEDIA)))


def test_importing_loads_nothing_heavy():
    heavy = "{'torch', 'transformers', 'sklearn', 'reasoning_gym', 'PIL'}"
    modules = ", ".join(["components.models.tiny", *(f"components.models.{name}.tiny" for name in TINY)])
    modules += ", components.data.digits, components.data.reasoning_gym, components.rewards.mix"
    code = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / "qwen3-quick"
    return TinyCheckpoint(folder=str(folder), **QUICK).start({})["hf_checkpoint"]


def weights(folder):
    with open(f"{folder}/model.safetensors", "rb") as file:
        return file.read()


def test_warm_start_reaches_its_band_and_says_so(made):
    with open(f"{made}/{MANIFEST}") as file:
        manifest = json.load(file)
    assert 0.02 <= manifest["score"] <= 0.3
    assert manifest["args"]["data"] == WORDS


def test_found_again_and_broken_ones_made_again_the_same(made, capsys):
    before = weights(made)
    TinyCheckpoint(folder=made, **QUICK).start({})
    assert "found" in capsys.readouterr().out
    with open(f"{made}/model.safetensors", "r+b") as file:
        file.truncate(1000)
    TinyCheckpoint(folder=made, **QUICK).start({})
    assert "made" in capsys.readouterr().out
    assert weights(made) == before


def test_other_arguments_make_another(made, tmp_path):
    other = TinyCheckpoint(folder=str(tmp_path / "other"), **{**QUICK, "seed": 1}).start({})["hf_checkpoint"]
    assert weights(other) != weights(made)


def _start(folder):
    TinyCheckpoint(folder=folder, **QUICK).start({})


def test_two_at_once_make_it_once(tmp_path):
    folder = tmp_path / "shared"
    spawn = multiprocessing.get_context("spawn")
    runs = [spawn.Process(target=_start, args=(str(folder),)) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0]
    assert {entry.name for entry in tmp_path.iterdir()} == {"shared", "shared.lock"}


def test_a_band_out_of_reach_is_an_error_and_leaves_nothing(tmp_path):
    tiny = TinyCheckpoint(folder=str(tmp_path / "x"), **{**QUICK, "score_low": 0.98, "score_high": 1.0, "max_steps": 4})
    with pytest.raises(ComponentError, match=r"after 4 steps, not in 0.98 to 1.0; raise max_steps"):
        tiny.start({})
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.lock"]


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ComponentError, match="name another folder"):
        TinyCheckpoint(folder=str(tmp_path / "mine"), **QUICK).start({})
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("change", "says"), [({"scor_low": 0.1}, "scor_low"), ({"score_low": 0.6}, "0 < score_low < score_high")]
)
def test_bad_arguments_are_refused_at_once(change, says):
    with pytest.raises(ComponentError, match=says):
        TinyCheckpoint(folder="/nonexistent", **{**QUICK, **change})


def test_glm_omni_wants_one_image_a_prompt(tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    glm_omni.write_checkpoint(tmp_path, 0)
    model, processor = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    with pytest.raises(ComponentError, match="one image each"):
        glm_omni.TinyGlmOmni().prepare(model, processor, [Prompt(messages=MESSAGES, label="5")], 0)
