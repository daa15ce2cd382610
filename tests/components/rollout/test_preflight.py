"""What the rollout finds before it runs."""

from pathlib import Path
from typing import Any

import pytest

from components.rollout.preflight import preflight
from components.rollout.sampling import check_evaluation, check_training
from slime_launch.errors import ComponentError
from slime_launch.types import Prompt
from tests.components.rollout.http_engine import worker_args


def test_check_finds_a_source_that_no_part_serves(tmp_path):
    """Before anything starts, by the first prompts of data that is no mixture."""
    exact = {"_target_": "components.rewards.exact.Exact", "weight": 1.0, "sources": ["maths"]}
    args = {
        "hf_checkpoint": str(tmp_path),
        "reward": {"_target_": "components.rewards.mix.Mix", "parts": {"exact": exact}},
        "data": {"_target_": "components.data.digits.Digits", "eval_size": 10},
        "seed": 1, "sampling": {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 4}, "eval_sets": {}, "filters": {},
        "generate": {"_target_": "components.rollout.single.SingleTurn"},
    }  # fmt: skip
    found = [str(problem) for problem in preflight(args).problems]
    assert [line for line in found if "no part scores samples of digits" in line] and len(found) == 1, found


def test_check_finds_a_held_out_source_that_no_part_serves(tmp_path: Path) -> None:
    """Of a set with data of its own, by the run's reward or by its own."""
    digits = {"_target_": "components.data.digits.Digits", "eval_size": 10}
    law = {"_target_": "components.data.mixture.Mixture", "sources": {"law": digits | {"weight": 1.0}}}

    def mix(source: str) -> dict[str, Any]:
        exact = {"_target_": "components.rewards.exact.Exact", "weight": 1.0, "sources": [source]}
        return {"_target_": "components.rewards.mix.Mix", "parts": {"exact": exact}}

    def found(own: Any) -> list[tuple[str, str]]:
        held = {"other": {"data": law, "reward": own}}
        args = worker_args(hf_checkpoint=str(tmp_path), data=digits, reward=mix("digits"), eval_sets=held)
        return [(problem.key, problem.reason) for problem in preflight(args).problems]

    says = "no part scores samples of law"
    assert found(None) == [("reward.parts", says)]
    assert found({"node": mix("digits"), "score": None}) == [("rollout.eval_sets.other.reward.parts", says)]
    assert found({"node": mix("law"), "score": None}) == []


@pytest.mark.parametrize("trained", [True, False])
def test_a_prompts_values_that_the_engine_refuses_are_found(trained: bool) -> None:
    prompt = Prompt([{"role": "user", "content": "x"}], "y", source="maths", sampling={"top_k": 0})
    with pytest.raises(ComponentError, match=r"source maths has sampling\.top_k=0: not at least 1"):
        check_training(prompt, {"temperature": 1.0}) if trained else check_evaluation(prompt)


def test_check_finds_a_reader_of_images_that_cannot_be_made(tmp_path: Path) -> None:
    def found(node: dict[str, Any]) -> list[str]:
        args = worker_args(hf_checkpoint=str(tmp_path), media=node)
        return [str(problem) for problem in preflight(args).problems if problem.key == "rollout.media"]

    media = "components.data.media.Media"
    assert found({"_target_": media, "max_pixels": 9}) == []
    assert "'max_pixelz'" in found({"_target_": media, "max_pixelz": 9})[0]
    assert "has no load(ref)" in found({"_target_": "components.rollout.single.SingleTurn"})[0]
