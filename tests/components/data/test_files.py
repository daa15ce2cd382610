"""The source of files: exact resume, held-out rows apart, long and broken rows counted, changed files noticed."""

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from components.data.files import Files
from slime_launch.errors import ComponentError
from slime_launch.interfaces import DataSource, Fits, Reports

counts = st.lists(st.integers(0, 9), max_size=5)


def write(folder, rows=10, name="a.jsonl", **extra):
    file = folder / name
    file.write_text("".join(json.dumps({"prompt": f"{name}{n}", "label": n, **extra}) + "\n" for n in range(rows)))
    return str(file)


def texts(prompts):
    return [prompt.messages[0]["content"] for prompt in prompts]


def drop_odd(prompt) -> int:
    return 9 if int(prompt.label) % 2 else 1


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    a, b = write(folder), write(folder, name="b.jsonl")
    return [a, f"{a}[2:9]", [f"{a}[-3:]", b]]


@given(st.integers(0, 2), st.booleans(), st.booleans(), st.integers(0, 9), counts, counts)
@settings(max_examples=60, deadline=None)
def test_resume_anywhere_gives_the_same_remaining_order(paths, which, shuffle, fitted, seed, before, after):
    def source() -> Files:
        made = Files(paths[which], seed, shuffle=shuffle, max_prompt_tokens=5 if fitted else None)
        made.fit(drop_odd)
        return made

    straight, stopped, resumed = source(), source(), source()
    for count in before:
        straight.take(count)
        stopped.take(count)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    rest = [texts(straight.take(count)) for count in after]
    assert [texts(resumed.take(count)) for count in after] == rest
    assert resumed.state_dict() == straight.state_dict() and resumed.metrics() == straight.metrics()


@given(st.integers(0, 2), st.booleans(), st.integers(0, 9), st.lists(st.integers(1, 9), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_each_round_holds_every_row_once(paths, which, shuffle, seed, counts):
    source = Files(paths[which], seed, shuffle=shuffle)
    size = {0: 10, 1: 7, 2: 13}[which]
    taken = [text for count in counts for text in texts(source.take(count))]
    for start in range(0, len(taken), size):
        part = taken[start : start + size]
        assert len(set(part)) == len(part)
    assert shuffle or taken == (texts(Files(paths[which], 0, shuffle=False).take(size)) * 6)[: len(taken)]
    assert source.metrics() == {f"data/{source.name}/epoch": float((len(taken) - 1) // size)}


def test_is_a_source_with_held_out_rows(tmp_path):
    path, other = write(tmp_path), write(tmp_path, 4, "b.jsonl")
    source = Files(f"{path}[:-3]", 1, eval_paths={"late": f"{path}[-3:]", "other": other}, name="sums")
    assert isinstance(source, DataSource) and isinstance(source, Fits) and isinstance(source, Reports)
    assert {name: len(held) for name, held in source.eval_sets().items()} == {"late": 3, "other": 4}
    assert {prompt.source for prompt in source.take(7)} == {"sums"}
    assert not set(texts(source.take(7))) & set(texts(source.eval_sets()["late"]))
    with pytest.raises(ComponentError, match=r"eval_paths.late: rows 6 to 6 of .*a.jsonl are trained on too"):
        Files(f"{path}[:7]", 1, eval_paths={"late": f"{path}[6:]"})


def test_a_source_of_held_out_rows_alone(tmp_path):
    source = Files(None, 0, eval_paths={"late": write(tmp_path, 3, "late.jsonl")})
    assert texts(source.eval_sets()["late"]) == [f"late.jsonl{n}" for n in range(3)] and source.name == "late"
    with pytest.raises(ComponentError, match="not one training prompt"):
        source.take(1)
    with pytest.raises(ComponentError, match="no file"):
        Files(None, 0)


def test_long_prompts_are_left_out_and_counted(tmp_path):
    path = write(tmp_path)
    source = Files(f"{path}[2:]", 1, eval_paths={"e": f"{path}[:2]"}, max_prompt_tokens=5, shuffle=False)
    source.fit(drop_odd)
    assert [prompt.label for prompt in source.take(4)] == ["2", "4", "6", "8"]
    source.take(4)
    assert source.metrics()["data/a/dropped_too_long"] == 7.0  # 3 5 7, and again with 9 before
    for _ in range(2):
        assert [prompt.label for prompt in source.eval_sets()["e"]] == ["0"]
    assert source.metrics()["data/a/eval_dropped_e_too_long"] == 1.0
    held = Files(None, 1, eval_paths={"e": f"{path}[:5]"}, max_prompt_tokens=5, name="a")
    held.fit(drop_odd)
    assert len(held.eval_sets()["e"]) == 3 and held.metrics() == {"data/a/eval_dropped_e_too_long": 2.0}
    source.fit(lambda prompt: 6)
    with pytest.raises(ComponentError, match=r"data a: a whole round gave no prompt; left out: {'too_long'"):
        source.take(1)


def test_every_malformed_row_is_named_before_anything_runs(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"prompt": "a", "label": 1}\n{"prompt": "b"}\n{"prompt"\n')
    with pytest.raises(ComponentError) as caught:
        Files(str(tmp_path / "x.jsonl"), 1)
    assert "x.jsonl, line 2: no column label; it has prompt\n" in str(caught.value)
    assert "x.jsonl, line 3: not JSON" in str(caught.value)
    late = Files(str(tmp_path / "x.jsonl"), 1, shuffle=False, check_rows=False)
    assert len(late.take(1)) == 1
    with pytest.raises(ComponentError, match="line 2: no column label"):
        late.take(1)


@pytest.mark.parametrize(
    ("after", "says"),
    [
        ("".join(json.dumps({"prompt": f"a.jsonl{n}", "label": n}) + "\n" for n in range(8)), "has 8 rows and had 10"),
        ("".join(json.dumps({"prompt": f"a.jsonl{n}", "label": n + 1}) + "\n" for n in range(10)), "has other rows"),
    ],
)
def test_a_changed_or_truncated_file_stops_a_resume(tmp_path, after, says):
    path = write(tmp_path)
    state = Files(path, 1).state_dict()
    (tmp_path / "a.jsonl").write_text(after)
    with pytest.raises(ComponentError, match=f"{path} {says}"):
        Files(path, 1).load_state_dict(state)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"columns": {"promt": "x"}}, r"data\.columns: .*unexpected keyword argument 'promt'"),
        ({"columns": {"prompt": "question"}}, "line 1: no column question; it has prompt, label"),
        ({"media": {"max_pixel": 3}}, r"data\.media: .*unexpected"),
        ({"media": {"networks": ["10.0.0.0/99"]}}, r"data\.media: '10\.0\.0\.0/99'"),
    ],
)
def test_arguments_that_do_not_fit_are_named(tmp_path, arguments, says):
    with pytest.raises(ComponentError, match=says):
        Files(write(tmp_path), 1, **arguments)


def test_images_come_along_and_broken_ones_stop_or_are_skipped(tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (8, 6)).save(picture, format="JPEG")
    (tmp_path / "good.jpg").write_bytes(picture.getvalue())
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    rows = [
        {"prompt": f"{n}", "label": "x", "im": None if n == 2 else ["good.jpg", "bad.jpg"][n == 1]} for n in range(4)
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = {"path": str(tmp_path / "x.jsonl"), "seed": 1, "columns": {"images": "im"}, "shuffle": False}
    source = Files(**arguments, on_bad_image="skip")
    taken = source.take(3)
    assert [len(prompt.images) for prompt in taken] == [1, 0, 1]
    assert taken[1].messages == [{"role": "user", "content": "2"}]
    assert Image.open(io.BytesIO(taken[0].images[0])).format == "PNG"
    assert source.metrics() == {"data/x/epoch": 0.0, "data/x/dropped_bad_image": 1.0}
    with pytest.raises(ComponentError, match=r"x\.jsonl, line 2: image bad\.jpg: is none of PNG"):
        Files(**arguments).take(4)
