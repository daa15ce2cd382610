"""Rows become prompts by the columns that YAML names; what does not fit is named."""

import pytest

from components.data.columns import Columns, RowError

USER = {"role": "user"}
IMAGE = {"type": "image"}


def text(value):
    return {"type": "text", "text": value}


def draft(row, template="{prompt}", system="", **columns):
    return Columns(**columns).draft(row, "name", template, system)


def test_every_column_is_read():
    row = {"q": "2+3?", "hint": "add", "rm": {"truth": 5}, "tools": '[{"name": "calc"}]', "id": 7,
           "k": {"top_k": 3, "stop": None}, "more": {"x": 1}, "from": "math", "ref": "[5]"}  # fmt: skip
    found = draft(
        row, "{prompt} ({hint})", "Be brief.", prompt="q", label="rm.truth", tools="tools", sampling="k",
        metadata=["id", "more"], source="from", completion="ref",
    )  # fmt: skip
    assert found.messages == [{"role": "system", "content": "Be brief."}, USER | {"content": "2+3? (add)"}]
    assert (found.label, found.tools, found.sampling) == ("5", ({"name": "calc"},), {"top_k": 3})
    assert (found.metadata, found.source, found.completion) == ({"id": 7, "x": 1}, "math", "[5]")


def test_chat_messages_are_kept_without_arrows_nulls():
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}], "name": None}
    found = draft({"prompt": [USER | {"content": "hi"}, call], "label": None})
    assert found.messages == [
        USER | {"content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]},
    ]
    assert found.label == "" and found.source == "name" and found.images == ()


@pytest.mark.parametrize(
    ("prompt", "images", "content"),
    [
        ("what?", ["a.png"], [IMAGE, text("what?")]),
        ("<image> and <image>?", ["a.png", "b.png"], [IMAGE, text(" and "), IMAGE, text("?")]),
        ([USER | {"content": "this: <image>"}], "a.png", [text("this: "), IMAGE]),
        ([USER | {"content": [text("this: "), IMAGE]}], "a.png", [text("this: "), IMAGE]),
        ([USER | {"content": [text("what?")]}], ["a.png"], [IMAGE, text("what?")]),
        ("no <image> here", None, "no <image> here"),
    ],
)
def test_images_get_one_part_each(prompt, images, content):
    found = draft({"prompt": prompt, "label": "x", "images": images}, images="images")
    assert found.messages[-1]["content"] == content
    assert len(found.images) == (0 if images is None else 1 if isinstance(images, str) else len(images))


def test_images_may_stand_in_the_messages():
    parts = [{"type": "image_url", "image_url": {"url": "https://x/a.png"}}, {"type": "image", "image": "b.png"}]
    found = draft({"prompt": [USER | {"content": parts}], "label": "x"})
    assert found.messages[0]["content"] == [IMAGE, IMAGE] and found.images == ("https://x/a.png", "b.png")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"question": "x", "label": "y"}, "no column prompt; it has question, label"),
        ({"prompt": 3, "label": "y"}, "prompt: int where list is needed"),
        ({"prompt": [], "label": "y"}, "prompt: no message"),
        ({"prompt": ["x"], "label": "y"}, r"prompt\[0\]: not JSON"),
        ({"prompt": [{"role": "robot", "content": "x"}], "label": "y"}, "role 'robot' is none of"),
        ({"prompt": [USER | {"content": 3}], "label": "y"}, "neither text nor a list"),
        ({"prompt": [USER | {"content": [{"type": "video"}]}], "label": "y"}, "type 'video'; text and image are taken"),
        ({"prompt": "<image>", "label": "y", "images": ["a", "b"]}, "1 image places in the messages and 2 images"),
        ({"prompt": [USER | {"content": [IMAGE]}], "label": "y", "images": None}, "1 image places .* and 0 images"),
        ({"prompt": [{"role": "system", "content": "x"}], "label": "y", "images": ["a"]}, "no user message"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_row_is_said(row, says):
    with pytest.raises(RowError, match=says):
        draft(row, images="images" if "images" in row else None)


def test_a_template_names_the_columns_there_are():
    with pytest.raises(RowError, match="KeyError 'hint'; columns: prompt, label"):
        draft({"prompt": "x", "label": "y"}, template="{prompt} {hint}")
