"""What is wrong with a reward group is found in the plan, without importing a component."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from slime_launch.errors import ConfigError
from tests.slime_launch.plans import plan_for

QWEN = "+experiment=qwen3_grpo"
EXACT, FORMAT = "reward.parts.exact", "reward.parts.format"
NODE = "{_target_: components.rewards.exact.Exact, weight: 1.0"
DIGITS = "{_target_: components.data.digits.Digits, weight: 1.0}"
MIXTURE = f"+data.sources={{math: {DIGITS}, swe: {DIGITS}}}"
EVAL = "+rollout.eval_sets.held={reward: {mix: {_target_: components.rewards.mix.Mix, mode: %s}, parts: {one: %s}}}"
OWN = f"+rollout.eval_sets.%s={{reward: {{parts: {{one: {NODE}, sources: [%s]}}}}}}}}"
LAW = f"+rollout.eval_sets.other.data={{_target_: components.data.mixture.Mixture, sources: {{law: {DIGITS}}}}}"

BAD = [
    ([f"{EXACT}.weight=0"], f"error: {EXACT}.weight=0.0: not a weight above 0; give a number, e.g. 1.0"),
    ([f"{EXACT}.weight=true"], f"error: {EXACT}.weight=True: expected float | array, got bool; give a number above 0"),
    ([f"~{EXACT}.weight"], f"error: {EXACT}.weight=None: not a weight above 0"),
    ([f"{EXACT}.weight=[[5,1.0],[5,0.5]]"], "steps of a schedule must grow, from 0 on"),
    ([f"{EXACT}.weight=[[0,1.0],[5,-0.5]]"], "weights of a schedule must be 0 or above, and not all 0"),
    ([f"{EXACT}.weight=[[0]]"], f"error: {EXACT}.weight=[[0]]: expected array of length 2"),
    (
        [f"{EXACT}.weight=[[0,1.0],[5,0.0]]", f"{FORMAT}.weight=[[0,0.0],[3,1.0],[5,0.0]]"],
        "all weights are zero at step 5; keep one above zero",
    ),
    (["reward.mix.mode=prod"], "error: reward.mix.mode=prod: no such mode; did you mean product?"),
    (["reward.mix.mode=min", f"{FORMAT}.weight=1"], f"error: {EXACT}.weight=0.9: a minimum has no weights; give 1.0"),
    ([f"+{EXACT}.normalise=grup"], f"error: {EXACT}.normalise=grup: invalid enum value 'grup'"),
    ([f"+{EXACT}.normalise=[1,1]"], f"error: {EXACT}.normalise=[1.0, 1.0]: not a range; give [lo, hi] with lo < hi"),
    ([f"+{FORMAT}.normalise=group", f"+{FORMAT}.gate=true"], "z-scores fall below zero and cannot be multiplied"),
    ([f"+{FORMAT}.gate=true", f"+{EXACT}.gate=true"], "error: reward.parts=exact, format: only gates; add a part that"),
    ([f"+{EXACT}.sources=[math]", f"+{EXACT}.gate=true", f"+{FORMAT}.sources=[swe]"], "only gates for samples of math"),
    ([f"+{EXACT}.sources=[a,a]"], f"error: {EXACT}.sources=['a', 'a']: empty, or a name twice"),
    ([f"+{EXACT}.deadline_s=0"], f"error: {EXACT}.deadline_s=0: expected float > 0.0"),
    ([f"+{EXACT}.on_error=dorp"], f"error: {EXACT}.on_error.then=dorp: invalid enum value 'dorp'; did you mean drop?"),
    ([f"+{EXACT}.on_error={{retyr: 2}}"], f"did you mean {EXACT}.on_error.retry?"),
    ([f"+{EXACT}.on_error={{retry: -1}}"], f"error: {EXACT}.on_error.retry=-1: expected int >= 0"),
    ([f"+{EXACT}.on_error={{then: drop, fallback: 0.0}}"], "cannot be dropped and scored with the fallback"),
    ([f"+reward.parts.two={NODE}}}"], f"error: reward.parts.two=components.rewards.exact.Exact: the same as {EXACT}"),
    # routes, where the data's sources are known
    ([MIXTURE, f"+{FORMAT}.sources=[mth]"], f"error: {FORMAT}.sources=mth: no such data source; did you mean math?"),
    ([LAW, f"+{EXACT}.sources=[math]", f"+{FORMAT}.sources=[math]"], "error: reward.parts=exact, format: no part"),
    (
        [MIXTURE, f"+{EXACT}.sources=[math]", f"+{FORMAT}.sources=[math]", "reward.score=null"],
        "error: reward.parts=exact, format: no part scores samples of swe; name it in the sources of a part",
    ),
    ([MIXTURE, f"+{EXACT}.sources=[math]"], "error: reward.score=exact: does not score samples of swe; give null"),
    # evaluation sets with rewards of their own
    ([EVAL % ("summ", NODE + "}")], "error: rollout.eval_sets.held.reward.mix.mode=summ: no such mode; did you mean"),
    ([EVAL % ("sum", NODE + ", on_error: x}")], "error: rollout.eval_sets.held.reward.parts.one.on_error.then=x: "),
    ([MIXTURE, OWN % ("swe", "math")], "error: rollout.eval_sets.swe.reward.parts=one: no part scores samples of swe"),
    ([EVAL % ("sum", "{weight: 1.0}")], "error: rollout.eval_sets.held.reward.parts.one={'weight': 1.0}: names no"),
]  # fmt: skip

GOOD = [
    ["reward.mix.mode=min", f"{EXACT}.weight=1.0", f"{FORMAT}.weight=1.0"],
    [f"+{FORMAT}.gate=true", f"{EXACT}.weight=[[0,1.0],[100,0.5]]", f"+{EXACT}.on_error={{retry: 2, fallback: 0.0}}"],
    [MIXTURE, f"+{EXACT}.sources=[math]", "reward.score=null", f"+reward.parts.two={NODE}, sources: [swe]}}"],
    [MIXTURE, OWN % ("math", "math")],
    [MIXTURE, LAW, f"+{FORMAT}.sources=[law]"],
    [MIXTURE, OWN % ("swe_late", "swe")],
    ["reward=math"],
    ["reward=by_source"],
    ["reward=digits"],
]


@pytest.mark.parametrize(("args", "line"), BAD)
def test_refused(args: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_for(QWEN, *args)
    lines = str(refused.value).splitlines()
    assert any(line in each for each in lines), lines
    assert len(lines) == 1, lines


@pytest.mark.parametrize("args", GOOD)
def test_planned(args: list[str]) -> None:
    (rollout,) = plan_for(QWEN, *args).of_kind("rollout")
    parts: dict[str, Any] = rollout.args["reward"]["parts"]
    assert parts and all("weight" in part for part in parts.values())


def test_the_rules_import_nothing_heavy() -> None:
    code = (
        "import sys, slime_launch.checks.rewards, slime_launch.schema.reward; "
        "print([name for name in ('torch', 'components', 'stamina', 'math_verify', 'ray') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
