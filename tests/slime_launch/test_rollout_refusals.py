"""Sampling, over-sampling and held-out sets that cannot be meant are refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from slime_launch.checks.sampling import RULES
from slime_launch.errors import ConfigError
from slime_launch.sglang_source import sampling_parameters
from tests.slime_launch.plans import plan_for

QWEN = "+experiment=qwen3_grpo"
S, E = "rollout.sampling", "rollout.eval_sets"
URL = "endpoint.base_url=http://h:1/v1"
NAMED = (f"+{E}.a.{URL}", f"+{E}.a.endpoint.model=m")
EXACT = "{_target_: components.rewards.exact.Exact, weight: 1.0}"

BAD: list[tuple[list[str], str]] = [
    ([f"+{S}.top_kk=4"], f"error: {S}.top_kk=4: no such SGLang sampling parameter; did you mean top_k?"),
    ([f"+{S}.top_k=many"], f"error: {S}.top_k=many: expected int, got str; see SGLang's SamplingParams"),
    ([f"+{S}.top_k=0"], f"error: {S}.top_k=0: SGLang refuses it; give a value at least 1, or -1 for all tokens"),
    ([f"+{S}.top_k=-7"], f"error: {S}.top_k=-7: SGLang refuses it"),
    ([f"+{S}.min_p=3.0"], f"error: {S}.min_p=3.0: SGLang refuses it; give a value from 0 to 1"),
    ([f"+{E}.a.sampling.top_p=7.0"], f"error: {E}.a.sampling.top_p=7.0: SGLang refuses it"),
    ([f"+{E}.a.sampling.temperature=-1.0"], f"error: {E}.a.sampling.temperature=-1.0: SGLang refuses it"),
    ([f"+{E}.a.sampling.max_new_tokens=-5"], f"error: {E}.a.sampling.max_new_tokens=-5: SGLang refuses it"),
    ([f"+{S}.stop_token_ids=[a]"], f"error: {S}.stop_token_ids=['a']: expected int, got str"),
    ([f"+{S}.sampling_seed=4"], f"error: {S}.sampling_seed=4: every rollout has its own, by the run's seed; remove it"),
    ([f"+{S}.n=4"], f"error: {S}.n=4: a request makes one sample; set group_size or samples; remove it"),
    ([f"+{S}.temperature=0.5"], f"error: {S}.temperature=0.5: it has a key of its own; set rollout.temperature"),
    ([f"+{S}.repetition_penalty=1.2"], f"error: {S}.repetition_penalty=1.2: it changes the engine's logits"),
    ([f"+{S}.regex='[0-9]+'"], f"error: {S}.regex=[0-9]+: it changes the engine's logits"),
    ([f"+{E}.a.sampling.top_q=1"], f"error: {E}.a.sampling.top_q=1: no such SGLang sampling parameter; did you"),
    ([f"+{E}.a.sampling.temperature=0"], f"error: {E}.a.sampling.temperature=0: greedy answers are reported for every"),
    ([f"+{E}.a.samples=0"], f"error: {E}.a.samples=0: expected"),
    ([f"+{E}.a.pass_at=[2,64]"], f"error: {E}.a.pass_at=64: pass@64 needs 64 samples of a prompt, there are 4"),
    ([f"+{E}.a.data._target_=os.system"], f"error: {E}.a.data._target_=os.system: only objects of components"),
    ([f"+{E}.a.{URL}"], f"error: {E}.a.endpoint.model=null: the server has to be told which; give its name"),
    ([f"+{E}.a.endpoint.model=m"], f"error: {E}.a.endpoint.base_url=null: there is no server that model could be of"),
    ([f"+{E}.a.endpoint.base_url=ftp://h/v1"], f"error: {E}.a.endpoint.base_url=ftp://h/v1: not a server's address"),
    ([f"+{E}.a.endpoint.base_url=https://me:pw@h/v1"], "not a server's address; write https://host[:port]/v1; a key"),
    ([f"+{E}.a.endpoint.api_key=sk-1"], f"error: {E}.a.endpoint.api_key"),
    ([*NAMED, f"+{E}.a.endpoint.key_file=none"], f"error: {E}.a.endpoint.key_file=none: cannot be read (FileNotFound"),
    ([*NAMED, f"+{E}.a.endpoint.key_file={__file__}"], f"{E}.a.endpoint.key_file={__file__}: is not one token"),
    ([*NAMED, f"+{E}.a.sampling.min_p=0.1"], f"error: {E}.a.sampling.min_p=0.1: OpenAI's protocol has no such"),
    ([*NAMED, f"+{S}.top_k=4"], f"{S}.top_k=4: OpenAI's protocol has no such parameter, and {E}.a is asked by it"),
    ([*NAMED, f"+{E}.a.endpoint.fields.top_kk=k"], f"error: {E}.a.endpoint.fields.top_kk=k: no such SGLang sampling p"),
    ([*NAMED, f"+{E}.a.endpoint.fields.top_k=n"], f"error: {E}.a.endpoint.fields.top_k=n: a field of the request"),
    (
        [*NAMED, "rollout.generate._target_=components.rollout.tools.ToolLoop"],
        f"error: {E}.a.{URL}: it is asked once a sample, and the run's answers come about by rollout.generate=comp",
    ),
    (["rollout.pass_at=[0]"], "error: rollout.pass_at=0: pass@0 needs 1 samples"),
    (["rollout.pass_at=[999]"], "error: rollout.pass_at=999: pass@999 needs 999 samples of a prompt, there are"),
    (["rollout.oversample=0.5"], "error: rollout.oversample=0.5: expected float >= 1.0"),
    (["rollout.oversample=9"], "error: rollout.draw_limit=8: fewer than rollout.oversample=9 begins with; raise it"),
    (["rollout.partial.keep=true"], "error: rollout.partial.keep=True: nothing is ever cut short where no more groups"),
    (["rollout.partial.mask_old=true"], "error: rollout.partial.mask_old=True: without partial.keep no token"),
    (["+rollout.filters.mine._target_=components.rollout.filters.Equal"], "filters defines no class or function Equal"),
    (["+rollout.filters.mine.tolerance=1"], "error: rollout.filters.mine={'tolerance': 1}: names no component"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "said"), BAD, ids=[" ".join(args) for args, _ in BAD])
def test_refused(args: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_for(QWEN, *args)
    assert said in str(refused.value)


def test_what_is_meant_goes_to_the_rollout() -> None:
    plan = plan_for(
        QWEN, f"+{S}.top_k=20", f"+{S}.stop=[x]", f"+{S}.stop_token_ids=[3]", f"+{S}.repetition_penalty=1.0",
        "rollout.oversample=2", "rollout.partial.keep=true", "rollout.partial.mask_old=true", "rollout.pass_at=[1,4]",
        f"+{E}.a.sampling.repetition_penalty=1.2", f"+{E}.a.reward.parts.exact={EXACT}", f"+{E}.a.reward.score=exact",
        f"+{E}.b.samples=9", f"+{E}.b.pass_at=[9]",
        "+rollout.filters.equal._target_=components.rollout.filters.EqualRewards",
    )  # fmt: skip
    args = plan.of_kind("rollout")[0].args
    assert {"top_k": 20, "stop": ["x"], "stop_token_ids": [3]}.items() <= args["sampling"].items()
    assert args["eval_sets"]["a"]["reward"]["node"]["parts"].keys() == {"exact"}
    assert args["eval_sets"]["a"]["reward"]["node"]["_target_"] == args["reward"]["_target_"]
    assert args["eval_sets"]["a"]["reward"]["score"] == "exact" and args["eval_sets"]["b"]["reward"] is None
    assert args["partial"] == {"keep": True, "mask_old": True, "max_lag": 4} and args["compares_group"]


def test_a_servers_names_for_sampling_parameters_are_the_users_word(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-1\n")
    endpoint = plan_for(
        QWEN, f"+{S}.top_k=20", f"+{E}.a.sampling.min_p=0.1", *NAMED, f"+{E}.a.endpoint.fields.top_k=top_k",
        f"+{E}.a.endpoint.fields.min_p=null", f"+{E}.a.endpoint.key_file={tmp_path}/key",
    ).of_kind("rollout")[0].args["eval_sets"]["a"]["endpoint"]  # fmt: skip
    assert endpoint["fields"] == {"top_k": "top_k", "min_p": None} and endpoint["key_file"] == f"{tmp_path}/key"
    assert (endpoint["base_url"], endpoint["model"], endpoint["once"]) == ("http://h:1/v1", "m", False)


def test_the_installed_sglang_is_read() -> None:
    assert {"top_k", "min_p", "stop", "stop_token_ids", "stop_regex", "ignore_eos"} <= sampling_parameters().keys()
    assert len(RULES) == 4
