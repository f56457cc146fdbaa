"""What of a stream may go out: pure, event by event."""

from __future__ import annotations

import pytest

from guardkeel.moderation.holding import Held, Lines, UnreadableError, kept, spoken


def event(text=None, index=0, **delta):
    if text is not None:
        delta["content"] = text
    return {
        "id": "c1",
        "object": "chat.completion.chunk",
        "model": "m",
        "choices": [{"index": index, "delta": delta}],
    }


def test_nothing_with_text_is_released_before_it_is_due():
    held = Held(10, 1000)
    held.add(event(role="assistant"))
    assert held.clean and len(held.release()) == 1  # a role is no text
    held.add(event("12345"))
    assert not held.clean and not held.due
    held.add(event("67890"))
    assert held.due and held.unjudged() == ["1234567890"]
    assert [e["choices"][0]["delta"]["content"] for e in held.release()] == ["12345", "67890"]
    assert held.clean and held.release() == []


def test_what_is_judged_again_is_the_end_of_the_reply():
    held = Held(4, 6)
    for piece in ("abcd", "efgh", "ijklmnopqr"):
        held.add(event(piece))
        assert held.due
        last = held.unjudged()
        held.release()
    assert last == ["ijklmnopqr"]  # all that is new, though it is more than the window
    held.add(event("ST"))
    assert held.unjudged() == ["opqrST"]


def test_choices_are_told_apart():
    held = Held(1, 100)
    held.add(event("one", 0))
    held.add(event("two", 1))
    assert held.unjudged() == ["one", "two"]
    [end] = held.stopped("flagged")
    assert [c["finish_reason"] for c in end["choices"]] == ["content_filter"] * 2
    assert end["id"] == "c1" and end["guardkeel"] == {"output": "flagged"}
    assert held.release() == []  # what was held is gone


@pytest.mark.parametrize(
    ("delta", "texts"),
    [
        ({"content": "a", "role": "assistant"}, ["a"]),
        ({"reasoning_content": "b"}, ["b"]),
        ({"some_new_field": {"deep": ["c", {"d": "d"}]}}, ["c", "d"]),
        (
            {
                "tool_calls": [
                    {"index": 0, "id": "x", "type": "function", "function": {"name": "n", "arguments": "{}"}}
                ]
            },
            ["n", "{}"],
        ),
        ({"content": [{"type": "text", "text": "e"}]}, ["e"]),
        ({"id": {"hidden": "f"}}, ["f"]),
        ({"content": None}, []),
    ],
)
def test_every_text_is_judged_whatever_its_key(delta, texts):
    assert list(spoken(delta)) == texts


@pytest.mark.parametrize(
    "delta", [{"audio": {"data": "AAA"}}, {"content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
)
def test_what_is_no_text_is_unreadable(delta):
    with pytest.raises(UnreadableError):
        list(spoken(delta))


@pytest.mark.parametrize(
    "garbage", [None, [], {"choices": None}, {"choices": ["a"]}, {"choices": [{"index": "0"}]}]
)
def test_garbage_is_unreadable(garbage):
    with pytest.raises(UnreadableError):
        Held(1, 1).add(garbage)


def test_unknown_keys_and_logprobs_do_not_pass():
    found = kept(
        {
            **event("a"),
            "note": "unjudged",
            "choices": [{"index": 0, "delta": {}, "logprobs": {"x": 1}, "extra": "y"}],
        }
    )
    assert found == {
        "id": "c1",
        "object": "chat.completion.chunk",
        "model": "m",
        "choices": [{"index": 0, "delta": {}}],
    }


def test_lines_are_cut_anywhere():
    stream = (
        'event: x\r\ndata: {"a":\r\ndata: "é\u2028"}\r\n\r\n: comment\ndata:[DONE]\n\ndata: rest'.encode()
    )
    for size in (1, 2, 3, 7, len(stream)):
        lines = Lines(1000)
        found = [d for i in range(0, len(stream), size) for d in lines.feed(stream[i : i + size])]
        assert [*found, *lines.end()] == ['{"a":\n"é\u2028"}', "[DONE]", "rest"]
    with pytest.raises(UnreadableError):
        list(Lines(10).feed(b"data: 0123456789"))
    with pytest.raises(UnreadableError):
        list(Lines(100).feed(b"data: \xff\n\n"))
