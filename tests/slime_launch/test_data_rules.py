"""Data nodes: what a plan sees of their files and weights, and what a check reads in them."""

import json
from pathlib import Path

import pytest

from components.models.tiny import TinyCheckpoint
from components.rollout.preflight import preflight
from slime_launch.errors import ConfigError
from tests.slime_launch.plans import plan_for

FILES = "_target_: components.data.files.Files"
LATE = f"+rollout.eval_sets.own.data={{{FILES}, path: null, eval_paths: {{late: '%s'}}}}"
MIXED = [
    "data=mixture",
    f"+data.sources.a={{{FILES}, path: 'a.jsonl[0:4]', weight: 1}}",
    f"+data.sources.b={{{FILES}, path: b.jsonl, eval_paths: {{late: '%s'}}, weight: 1}}",
]


def mixed(held: str) -> list[str]:
    return [*MIXED[:2], MIXED[2] % held]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"prompt": f"p{n}", "label": n}) + "\n" for n in range(9)))
    (tmp_path / "b.jsonl").write_text('{"prompt": "b", "label": 0}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rollout(*args: str):
    return next(actor for actor in plan_for(*args).actors if actor.name == "rollout").args


def test_paths_count_from_where_the_launcher_is_started(here):
    held = "+rollout.eval_sets.own.data={_target_: components.data.files.Files, path: [a.jsonl], columns: {}}"
    args = rollout("data=jsonl", 'data.path="a.jsonl[0:4]"', "data.eval_paths={late: 'a.jsonl[4:]'}", held)
    assert (args["data"]["path"], args["data"]["eval_paths"]) == (
        f"{here}/a.jsonl[0:4]", {"late": f"{here}/a.jsonl[4:]"},
    )  # fmt: skip
    assert args["eval_sets"]["own"]["data"]["path"] == [f"{here}/a.jsonl"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["data=jsonl"], "data.path=???: no such file or folder"),
        (["data=parquet", "data.path=b.parquet"], "data.path=b.parquet: no such file"),
        (["data=jsonl", 'data.path="a.jsonl[0;4]"'], r"data.path=a.jsonl[0;4]: [0;4] is not [start:stop] of whole"),
        (["data=jsonl", "data.path=a.jsonl", "data.eval_paths={x: c.jsonl}"], "data.eval_paths.x=c.jsonl: no such"),
        (["data=mixture", "data.sources.digits.weight=-1"], "data.sources.digits.weight=-1: not a weight above 0"),
        (["data=mixture", "+data.sources.x={weight: 1}"], "data.sources.x={'weight': 1}: names no component"),
        (["data=jsonl", "data.path=a.jsonl", LATE % "a.jsonl[-2:]"],
         "rollout.eval_sets.own.data.eval_paths.late=a.jsonl[-2:]: rows of it are trained on too, as a.jsonl"),
        (["data=jsonl", 'data.path="a.jsonl[:-2]"', LATE % "a.jsonl[-3:]"], "late=a.jsonl[-3:]: rows of it are"),
        (mixed("a.jsonl[3:]"), "data.sources.b.eval_paths.late=a.jsonl[3:]: rows of it are trained on too, as"),
        (["+rollout.eval_sets.own.data={_target_: components.data.files.Files, path: d.jsonl}"],
         "rollout.eval_sets.own.data.path=d.jsonl: no such file"),
    ],
)  # fmt: skip
def test_a_plan_refuses_what_needs_no_reading(args, says):
    with pytest.raises(ConfigError) as caught:
        plan_for(*args)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (['data.path="a.jsonl[0:99]"'], "a.jsonl[0:99] reaches beyond its 9 rows"),
        (["data.path=a.jsonl", "data.columns.prompt=question"], "a.jsonl, line 1: no column question; it has prompt"),
        (['data.path="a.jsonl[:4]"', "data.eval_paths={x: 'a.jsonl[-6:]'}"], "eval_paths.x: rows 3 to 3 of"),
        (['data.path="a.jsonl[:4]"', LATE % "a.jsonl[-6:]"], "rows 3 to 3 of the held-out set late are trained on too"),
        (mixed("a.jsonl[-6:]"), "rows 3 to 3 of the held-out set b.late are trained on too"),
        (["data.path=bad.jsonl"], "bad.jsonl, line 2: not JSON"),
        (["data.path=a.jsonl"], "there is no held-out set"),
    ],
)
def test_a_check_refuses_what_it_reads(here, args, says):
    (here / "bad.jsonl").write_text('{"prompt": "x", "label": 1}\n{"prompt": \n')
    (problem,) = preflight(rollout(*(() if "data=mixture" in args else ("data=jsonl",)), *args)).problems
    assert problem.key == "data" and says in problem.reason


def test_a_check_tells_held_out_rows_that_give_no_prompt(here):
    rows = [{"prompt": "x", "label": 1, "im": image} for image in (None, "none.png", "none.png")]
    (here / "late.jsonl").write_text("\n".join(map(json.dumps, rows)))
    held = f"{{{FILES}, path: null, eval_paths: {{late: late.jsonl}}, columns: {{images: im}}, on_bad_image: skip}}"
    found = preflight(rollout("data=jsonl", "data.path=a.jsonl", f"+rollout.eval_sets.own.data={held}"))
    assert not found.problems
    assert "held-out rows left out, data/late/eval_dropped_late_bad_image: 2" in found.lines


def test_a_check_leaves_out_what_the_run_will(here):
    plan = plan_for("data=jsonl", "data.path=a.jsonl", "+data.max_prompt_tokens=1")
    TinyCheckpoint.write_stand_in(next(actor for actor in plan.actors if actor.name == "checkpoint").args, "tiny")
    (args,) = (dict(actor.args) for actor in plan.actors if actor.name == "rollout")
    (problem,) = preflight(args | {"hf_checkpoint": str(here / "tiny")}).problems
    assert "a whole round gave no prompt; left out: {'too_long': " in problem.reason
