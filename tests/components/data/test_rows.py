"""Rows of files: the index is exact, slices are Python's, and what is wrong is named with its file and line."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.data.rows import _index, open_rows
from slime_launch.data_files import DataFile, absolute, named_paths
from slime_launch.errors import ComponentError

LINES = st.lists(st.sampled_from([b"", b"  ", b"\r", b'{"a": 1}', b'{"a": "\xc3\xa9"}', b'  {"b": [2]}']), max_size=12)


def jsonl(folder: Path, rows, name="rows.jsonl") -> str:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@given(LINES, st.booleans(), st.integers(1, 7))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_index_knows_every_line_that_is_not_blank(tmp_path, monkeypatch, lines, ends, chunk):
    monkeypatch.setattr("components.data.rows._CHUNK", chunk)  # so that lines lie across chunks
    text = b"\n".join(lines) + (b"\n" if ends and lines else b"")
    (tmp_path / "x.jsonl").write_bytes(text)
    starts, numbers, end = _index(tmp_path / "x.jsonl")
    assert [text[start:].split(b"\n")[0] for start in starts] == [line for line in lines if line.strip()]
    assert numbers.tolist() == [number for number, line in enumerate(lines, 1) if line.strip()] and end == len(text)


@pytest.mark.parametrize(("cut", "expected"), [("", range(9)), ("[2:5]", range(2, 5)), ("[-3:]", range(6, 9)),
                                               ("[:-8]", range(1)), ("[:]", range(9))])  # fmt: skip
def test_slices_are_pythons_and_lines_are_the_files(tmp_path, cut, expected):
    rows = open_rows(jsonl(tmp_path, [{"n": n} for n in range(9)]) + cut)
    assert [rows[number]["n"] for number in range(len(rows))] == list(expected)
    assert rows.where(0) == f"{tmp_path}/rows.jsonl, line {expected[0] + 1}"


@pytest.mark.parametrize(
    ("cut", "says"),
    [
        ("[0:10]", "beyond its 9 rows"),
        ("[-10:]", "beyond"),
        ("[5:5]", "holds no row"),
        ("[1:2:3]", r"not \[start:stop\]"),
    ],
)
def test_slices_that_do_not_fit_are_refused(tmp_path, cut, says):
    with pytest.raises(ComponentError, match=says):
        open_rows(jsonl(tmp_path, [{"n": n} for n in range(9)]) + cut)


def test_a_malformed_row_names_file_and_line(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n\n{"a": \n[1]\n\xff\n')
    rows = open_rows(str(tmp_path / "x.jsonl"))
    for number, says in enumerate(["line 3: not JSON", r"line 4: not a JSON object: '\[1\]'", "line 5: not JSON"], 1):
        with pytest.raises(ComponentError, match=says):
            rows[number]


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path):
    path = jsonl(tmp_path, [{"n": n} for n in range(3)])
    rows = open_rows(path)
    assert rows[1] == {"n": 1}
    jsonl(tmp_path, [{"m": n} for n in range(4)])
    with pytest.raises(ComponentError, match=r"rows\.jsonl has changed"):
        rows[1]


def test_rows_may_be_appended_behind_a_slice(tmp_path):
    path = jsonl(tmp_path, [{"n": n} for n in range(3)]) + "[0:3]"
    before = open_rows(path).fingerprint()
    jsonl(tmp_path, [{"n": n} for n in range(5)])
    assert open_rows(path).fingerprint() == before
    jsonl(tmp_path, [{"n": n + (n == 1)} for n in range(5)])
    assert open_rows(path).fingerprint()["digest"] != before["digest"]


def test_parquet_and_saved_datasets_are_the_same_rows(tmp_path, monkeypatch):
    from datasets import Dataset, DatasetDict, Image

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    content = {"q": ["a", "b", "c"], "im": [{"bytes": b"x", "path": None}] * 3, "m": [[{"role": "user"}]] * 3}
    table = Dataset.from_dict(content).cast_column("im", Image())
    table.to_parquet(tmp_path / "t.parquet")
    DatasetDict(train=table).save_to_disk(tmp_path / "saved")
    for path in ("t.parquet", "saved/train"):
        rows = open_rows(str(tmp_path / path) + "[1:]")
        assert [rows[number]["q"] for number in range(len(rows))] == ["b", "c"]
        assert rows[0]["im"]["bytes"] == b"x" and rows[0]["m"] == [{"role": "user"}]
        assert rows.where(0).endswith(f"{path}, row 1")
        assert rows.fingerprint() == open_rows(str(tmp_path / path) + "[1:]").fingerprint()
    with pytest.raises(ComponentError, match="name one of its parts: train"):
        open_rows(str(tmp_path / "saved"))


def test_what_is_no_data_file_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("a,b")
    (tmp_path / "x.parquet").write_text("no parquet")
    (tmp_path / "empty.jsonl").write_text("\n \n")
    for name, says in {"x.csv": "not one of .jsonl", "x.parquet": "cannot be read", "empty.jsonl": "holds no row",
                       "none.jsonl": "no such file"}.items():  # fmt: skip
        with pytest.raises(ComponentError, match=f"{name}: {says}"):
            open_rows(str(tmp_path / name))


def test_paths_of_a_node_are_found_and_made_absolute():
    node = {"sources": {"a": {"path": ["x.jsonl[0:2]", "/y.jsonl"], "eval_paths": {"t": "z.jsonl"}, "name": "x"}},
            "media": {"roots": ["images"]}}  # fmt: skip
    assert dict(named_paths(node, "data")) == {
        "data.sources.a.path[0]": "x.jsonl[0:2]", "data.sources.a.path[1]": "/y.jsonl",
        "data.sources.a.eval_paths.t": "z.jsonl", "data.media.roots[0]": "images",
    }  # fmt: skip
    here = Path.cwd()
    made = absolute(node)
    assert made["sources"]["a"] == {"path": [f"{here}/x.jsonl[0:2]", "/y.jsonl"],
                                    "eval_paths": {"t": f"{here}/z.jsonl"}, "name": "x"}  # fmt: skip
    assert made["media"] == {"roots": [f"{here}/images"]}
    assert DataFile.parse("~/a[1:]").file == Path.home() / "a"
