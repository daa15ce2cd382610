"""The shipped recipes of real models: they plan, and their plans are the ones that somebody has looked at.

``python -m tests.slime_launch.test_recipes`` writes the golden files again; read the difference before you commit it.
"""

import json
from pathlib import Path

import pytest

from tests.slime_launch.plans import plan_for, short_form

CONF = Path(__file__).parents[2] / "conf" / "experiment"
GOLDEN = Path(__file__).parent / "golden"
RECIPES = sorted(file.stem for file in CONF.glob("*.yaml") if "hf_config:" in file.read_text())


def dump(name: str) -> str:
    return json.dumps(short_form(plan_for(f"+experiment={name}")), indent=1, sort_keys=True) + "\n"


@pytest.mark.parametrize("name", RECIPES)
def test_the_plan_is_the_golden_one(name: str) -> None:
    assert dump(name) == (GOLDEN / f"{name}.json").read_text()


def test_there_is_a_recipe_for_each_real_model() -> None:
    shipped = {file.stem for file in (CONF.parents[1] / "components" / "models").glob("*/configs/*.json")} - {"tiny"}
    planned = {line.split()[1] for name in RECIPES for line in _lines(name) if line.strip().startswith("hf_config:")}
    assert len(RECIPES) >= 9
    assert planned == shipped
    assert sorted(file.stem for file in GOLDEN.glob("*.json")) == RECIPES


def _lines(name: str) -> list[str]:
    return (CONF / f"{name}.yaml").read_text().splitlines()


if __name__ == "__main__":
    for recipe in RECIPES:
        (GOLDEN / f"{recipe}.json").write_text(dump(recipe))
