import json

import pytest

from guardkeel.conversation import (
    Conversation,
    Example,
    ToolCall,
    Turn,
    normalised,
    parse_labels,
    read_jsonl,
    text_digest,
    write_jsonl,
)
from guardkeel.errors import DataError

HELLO = [{"role": "user", "content": "hello"}]
IMAGE = [{"type": "image_url", "image_url": {}}]


def called(*calls):
    return [{"role": "assistant", "tool_calls": list(calls)}]


def example(**fields):
    return Example.from_row({"id": "a", "messages": HELLO, **fields})


def read_lines(tmp_path, *lines):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return list(read_jsonl(path))


def test_of():
    assert Conversation.of("hi").turns == (Turn("user", "hi"),)
    assert Conversation.of("hi", "").turns == (Turn("user", "hi"), Turn("assistant", ""))
    with pytest.raises(DataError, match="no turns"):
        Conversation(())


def test_tool_calls_and_results():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Balance?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "balance", "arguments": '{"a":1}'}}
            ],
        },
        {"role": "tool", "content": "12.50", "name": "balance", "tool_call_id": "c1"},
        {"role": "assistant", "content": "12.50"},
    ]
    conversation = Conversation.from_messages(messages)
    assert conversation.turns[2] == Turn("assistant", "", (ToolCall("balance", '{"a":1}', "c1"),))
    assert conversation.turns[3] == Turn("tool", "12.50", name="balance", tool_call_id="c1")
    assert conversation.text == 'Be brief.\nBalance?\nbalance({"a":1})\n12.50\n12.50'
    messages[2]["content"] = ""
    assert conversation.to_messages() == messages


def test_what_openai_sends_in_other_forms():
    parts = [{"type": "text", "text": "one"}, {"type": "input_text", "text": "two"}]
    said = [{"type": "refusal", "refusal": "I can't."}, {"type": "output_text", "text": "Sorry."}]
    calls = [
        {"index": 0, "function": {"name": "f", "arguments": {"b": 1, "a": "ü"}}},
        {"function": {"name": "g"}},
    ]
    conversation = Conversation.from_messages(
        [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": said},
            {"role": "assistant", "content": None, "refusal": "No."},
            {"role": "assistant", "content": "Well.", "refusal": "No."},
            {"role": "assistant", "tool_calls": calls},
            {"role": "user", "content": []},
        ]
    )
    assert [t.content for t in conversation.turns] == [
        "one\ntwo",
        "I can't.\nSorry.",
        "No.",
        "Well.\nNo.",
        "",
        "",
    ]
    assert conversation.turns[4].tool_calls == (ToolCall("f", '{"a": "ü", "b": 1}'), ToolCall("g", "{}"))
    null = {"function": {"name": "g", "arguments": None}}
    turn = Conversation.from_messages([{"role": "assistant", "tool_calls": [null]}]).turns[0]
    assert turn.tool_calls == (ToolCall("g", "{}"),)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("hello", "messages must be a non-empty list, not 'hello'"),
        ([], "messages must be a non-empty list"),
        ({"role": "user"}, "messages must be a non-empty list"),
        (None, "messages must be a non-empty list, not None"),
        (["hello"], "message 0: must be an object with role and content, not 'hello'"),
        ([{"role": "user"}], "message 0: content must be text, not None"),
        ([*HELLO, {"role": "owner", "content": ""}], "message 1: unknown role 'owner'"),
        ([{"role": ["user"], "content": ""}], "message 0: unknown role"),
        ([{"role": "user", "content": 5}], "message 0: content must be text, not 5"),
        ([{"role": "user", "content": "", "mood": 1}], "message 0: unknown field 'mood'"),
        ([{"role": "user", "content": IMAGE}], "type 'image_url' is not text"),
        ([{"role": "user", "content": ["text"]}], "type 'str' is not text"),
        ([{"role": "user", "content": [{"type": "text"}]}], "'message 0: text' must be a string, not None"),
        ([{"role": "user", "content": "", "name": ["x"]}], "field 'name' must be a string"),
        ([{"role": "assistant", "content": "", "refusal": 1}], "message 0: content must be text, not 1"),
        ([{"role": "assistant", "tool_calls": 5}], "message 0: tool_calls must be a list, not 5"),
        (called({"function": {}}), "a tool call needs function.name"),
        (called("f()"), "a tool call needs function.name"),
        (called({"function": {"name": "f", "x": 1}}), "unknown field 'x' in a tool call"),
        (called({"y": 1, "function": {"name": "f"}}), "unknown field 'y'"),
        (called({"id": 1.5, "function": {"name": "f"}}), "'tool call id' must be a"),
    ],
)
def test_messages_that_cannot_be_used(messages, said):
    with pytest.raises(DataError) as error:
        Conversation.from_messages(messages)
    assert said in error.value.problem
    assert error.value.remedy


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": HELLO}, "field 'id' must be a string, not None"),
        ({"id": "", "messages": HELLO}, "field 'id' must be a non-empty string"),
        ({"id": True, "messages": HELLO}, "field 'id' must be a string, not True"),
        ({"id": "a"}, "field 'messages' is missing"),
        ({"id": "a", "messages": HELLO, "label": "safe"}, "unknown field 'label'"),
        ({"id": "a", "messages": HELLO, "labels": ["safe"]}, "labels must be an object, not ['safe']"),
        ({"id": "a", "messages": HELLO, "labels": {"promt": "safe"}}, "unknown side 'promt'"),
        (
            {"id": "a", "messages": HELLO, "labels": {"prompt": "Safe"}},
            "unknown label 'Safe' for side 'prompt'",
        ),
        ({"id": "a", "messages": HELLO, "labels": {"prompt": None}}, "unknown label None"),
        ({"id": "a", "messages": HELLO, "categories": "Threat"}, "'categories' must be a list of strings"),
        ({"id": "a", "messages": HELLO, "categories": [1]}, "'categories' must be a string, not 1"),
        ({"id": "a", "messages": HELLO, "source": None}, "'source' must be a string"),
        ({"id": "a", "messages": HELLO, "language": 3}, "'language' must be a string"),
        ({"id": "a", "messages": HELLO, "group": {}}, "'group' must be a string"),
    ],
)
def test_rows_that_cannot_be_used(row, said, tmp_path):
    with pytest.raises(DataError) as error:
        Example.from_row(row)
    assert said in error.value.problem
    with pytest.raises(DataError) as in_file:
        read_lines(tmp_path, json.dumps({"id": "z", "messages": HELLO}), "", json.dumps(row))
    assert in_file.value.problem == f"{tmp_path / 'rows.jsonl'}:3: {error.value.problem}"
    assert in_file.value.remedy == error.value.remedy != ""


def test_numbers_are_ids_too():
    assert (example(id=7).id, example(group=8).group) == ("7", "8")


def test_labels_cannot_be_changed_and_sides_may_be_missing():
    labels = parse_labels({"response": "unsafe"})
    assert dict(labels) == {"response": "unsafe"}
    with pytest.raises(TypeError):
        labels["prompt"] = "safe"
    assert "prompt" not in example().labels


def test_a_file_is_what_was_written(tmp_path):
    texts = [
        "a\u2028b\u2029c\x85d",
        "\ufeffbom",
        "nul\0",
        "\ud800 lone \udfff",
        "\\\ud83d",
        "😀",
        "\r\n\t",
        "",
    ]
    written = [
        Example(str(i), Conversation.of(t, t), parse_labels({"prompt": "safe"}), (t,), t, "xx", "g")
        for i, t in enumerate(texts)
    ]
    path = tmp_path / "deep" / "rows.jsonl"
    assert write_jsonl(path, written) == len(texts)
    assert list(read_jsonl(path)) == written
    assert path.read_bytes().count(b"\n") == len(texts)


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("before")

    def failing():
        yield example()
        raise KeyError("x")

    with pytest.raises(KeyError):
        write_jsonl(path, failing())
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_lines(tmp_path):
    row = json.dumps({"id": "a", "messages": HELLO})
    assert len(read_lines(tmp_path, "\ufeff" + row + "\r", "  ", row, "")) == 2
    assert read_lines(tmp_path, "") == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "a line must be a JSON object, not list"),
        ("[" * 100_000, "not JSON"),
        ('{"id": ' + "9" * 5000 + "}", "not JSON"),
        (b'{"id": "\xff"}', "not UTF-8 (invalid start byte at byte 8)"),
        ('{"id": "a\0b"}', "not JSON"),
    ],
)
def test_lines_that_cannot_be_used(line, said, tmp_path):
    with pytest.raises(DataError) as error:
        read_lines(tmp_path, line)
    assert error.value.problem.startswith(f"{tmp_path / 'rows.jsonl'}:1: {said}")
    assert error.value.remedy


def test_files_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(DataError, match="cannot be read") as error:
            list(read_jsonl(path))
        assert str(path) in error.value.problem


def test_normalised_and_digest():
    assert normalised("  Ｈｅｌｌｏ,\u2028WORLD!! Straße ") == "hello world strasse"
    assert text_digest("a") == "ca978112ca1bbdca"
    assert len(text_digest("\ud800")) == 16
