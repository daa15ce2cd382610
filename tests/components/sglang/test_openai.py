"""Outside tools and rewards ask the engines, through their router, by OpenAI's protocol."""

import asyncio
import json
import shutil
from pathlib import Path

import openai
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from components.rewards.model import Judge, Scalar
from components.rollout.elsewhere import TextSample
from components.rollout.preflight import preflight
from components.rollout.prompts import Renderer
from slime_launch.endpoints import published
from slime_launch.errors import ComponentError
from tests.components.rewards.samples import sample
from tests.components.rollout.http_engine import Endless, HttpEngine, make_worker, serving, worker_args
from tests.components.rollout.test_elsewhere import entry, node
from tests.components.sglang.conftest import engine_of, stopped
from tests.servers import data_uri, make_server, picture, post

pytestmark = pytest.mark.servers


def test_evaluation_tools_chat_with_text_and_images(text, split, tmp_path):
    """What ``endpoints.json`` says is all that OpenAI's own client needs."""
    image = {"type": "image_url", "image_url": {"url": data_uri(picture(3))}}
    asked = {text.router: "Hello", split.endpoint: [{"type": "text", "text": "What is it?"}, image]}
    encoded = sum(split.encoded())
    for router, content in asked.items():
        with published(tmp_path, {"actor": router}):
            (told,) = json.loads((tmp_path / "endpoints.json").read_text()).values()
            key = Path(told["key_file"]).read_text()
            with openai.OpenAI(base_url=told["base_url"], api_key=key, max_retries=0) as client:
                message = {"role": "user", "content": content}
                answer = client.chat.completions.create(
                    model=told["model"], messages=[message], temperature=0, max_tokens=6, logprobs=True
                )
            assert 0 < answer.usage.completion_tokens <= 6 and answer.choices[0].finish_reason in ("stop", "length")
            assert len(answer.choices[0].logprobs.content) == answer.usage.completion_tokens
            wrong = openai.OpenAI(base_url=told["base_url"], api_key="wrong", max_retries=0)
            with wrong as client, pytest.raises(openai.AuthenticationError):
                client.chat.completions.create(model=told["model"], messages=[message])
    assert sum(split.encoded()) == encoded + 1

    with openai.OpenAI(base_url=text.router.url + "/v1", api_key=text.router.key) as client:
        chat = [{"role": "user", "content": "Hello"}]
        counted = client.chat.completions.create(model="actor", messages=chat, max_tokens=1).usage.prompt_tokens
    tokenizer = AutoTokenizer.from_pretrained(text.checkpoint)
    rendered = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert counted == len(tokenizer(rendered, add_special_tokens=False)["input_ids"])


def test_a_held_out_set_answered_by_a_deployed_copy(text, split, tmp_path, monkeypatch):
    """Greedy, the same model says the same behind its chat endpoint as to the rollout; images arrive at another's."""
    monkeypatch.setenv("SLIME_LAUNCH_ALLOW_TARGETS", "tests")
    SEEN.clear()
    encoded = sum(split.encoded())

    def endpoint(router, name):
        (tmp_path / name).write_text(router.key)
        (tmp_path / name).chmod(0o600)
        return {"base_url": f"{router.url}/v1", "model": name, "key_file": str(tmp_path / name)}

    sets = {
        "copy": entry("", endpoint(text.router, "actor"), reward=None),
        "omni": entry("", endpoint(split.endpoint, "omni"), reward=None, samples=1, data=node("Pictures")),
    }
    with serving(HttpEngine()) as engine:
        made = make_worker(text.checkpoint, engine.url, eval_sets=sets, reward={"_target_": f"{__name__}.Keep"})
        try:
            checked = preflight(worker_args(eval_sets=sets) | {"hf_checkpoint": str(text.checkpoint)})
            assert checked.problems == [] and sum("it lists" in line for line in checked.lines) == 2
            told = made.evaluate(0)
        finally:
            made.stop()
    assert told["eval/copy/unanswered"] == told["eval/omni/unanswered"] == told["eval/omni/greedy/unanswered"] == 0
    assert sum(split.encoded()) > encoded and Path(text.endpoint.log).is_file()

    renderer = Renderer(str(text.checkpoint))
    foreign = [one for one in SEEN if isinstance(one, TextSample)]
    for prompt in Endless(0).eval_sets()["held_out"]:
        body = {"input_ids": renderer.render(prompt).ids, "sampling_params": {"temperature": 0, "max_new_tokens": 16}}
        meta = post(text.endpoint, "/generate", body | {"return_logprob": True}).json()["meta_info"]
        greedy = renderer.decode([token for _, token, _ in meta["output_token_logprobs"]])
        assert greedy and greedy in {one.response for one in foreign if one.prompt.label == prompt.label}
    assert len(foreign) == 2 * (2 + 1) + 2 * (1 + 1) and all(one.response for one in foreign)


SEEN = []


class Keep:
    """Scores nothing, keeps the samples."""

    async def score(self, samples):
        SEEN.extend(samples)
        return [0.0] * len(samples)


def test_an_engine_as_judge(text):
    """A random judge writes what its request leans it to; where that is no score, the reward says so."""
    tokenizer = AutoTokenizer.from_pretrained(text.checkpoint)

    async def ask(digit, **args):
        leaning = {str(tokenizer.convert_tokens_to_ids(digit)): 100.0}
        judge = Judge(
            "actor", "Question: $question\nAnswer: $response", max_tokens=2, request={"logit_bias": leaning}, **args
        )
        judge.connect({"actor": text.router})
        try:
            return await asyncio.gather(*(judge.score_one(sample(answer)) for answer in ("[7]", "[8]")))
        finally:
            await judge.close()

    assert [asyncio.run(ask(digit, pattern=r"^(\d)")) for digit in "38"] == [[3.0, 3.0], [8.0, 8.0]]
    with pytest.raises(ComponentError, match="judge actor gave no score: '33'"):
        asyncio.run(ask("3"))


@pytest.mark.full
def test_a_scalar_head(qwen, folder):
    """Scores are those of the same weights in transformers."""
    checkpoint = folder / "scalar"
    shutil.copytree(qwen, checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    config["architectures"] = ["Qwen3ForRewardModel"]
    (checkpoint / "config.json").write_text(json.dumps(config))
    weights, width = load_file(checkpoint / "model.safetensors"), config["hidden_size"]
    generator = torch.Generator().manual_seed(0)
    shapes = {"0.weight": (width, width), "0.bias": (width,), "2.weight": (1, width), "2.bias": (1,)}
    head = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    weights = {name: value for name, value in weights.items() if not name.startswith("lm_head")}
    weights |= {f"score.{name}": value for name, value in head.items()}
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    server = make_server("regular", checkpoint, folder, name="scalar", model="reward", is_embedding=True)
    front = make_server("router", checkpoint, folder, name="scalar-front", model="reward")
    samples = [sample(answer) for answer in ("[7]", "[8]", "a longer one")]

    async def ask(router):
        reward = Scalar("reward")
        reward.connect({"reward": router})
        try:
            return await asyncio.gather(*map(reward.score_one, samples))
        finally:
            await reward.close()

    with stopped(server, front):
        given = server.start({})
        engine_of(server, given)
        scores = asyncio.run(ask(front.start({"engine_url": [given["engine_url"]]})["router_url"]))
    model, tokenizer = AutoModel.from_pretrained(qwen, dtype=torch.float32), AutoTokenizer.from_pretrained(qwen)
    for one, score in zip(samples, scores, strict=True):
        ids = tokenizer(one.prompt_text + one.response, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            last_D = model(ids).last_hidden_state[0, -1]
            hidden_D = torch.relu(last_D @ head["0.weight"].T + head["0.bias"])
            wanted = (hidden_D @ head["2.weight"].T + head["2.bias"]).item()
        assert score == pytest.approx(wanted, rel=1e-4, abs=1e-3)
