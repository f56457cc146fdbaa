import json

from hypothesis import given, settings
from hypothesis import strategies as st

from guardkeel.conversation import (
    LABELS,
    ROLES,
    SIDES,
    Conversation,
    Example,
    ToolCall,
    Turn,
    read_jsonl,
    write_jsonl,
)
from guardkeel.errors import DataError

# Every code point, lone surrogates and line separators among them.
texts = st.text(st.characters(), max_size=40)
calls = st.builds(ToolCall, name=texts, arguments=texts, id=texts)
turns = st.builds(
    Turn,
    role=st.sampled_from(ROLES),
    content=texts,
    tool_calls=st.lists(calls, max_size=2).map(tuple),
    name=texts,
    tool_call_id=texts,
)
conversations = st.lists(turns, min_size=1, max_size=4).map(lambda found: Conversation(tuple(found)))
examples = st.builds(
    Example,
    id=texts.filter(bool),
    conversation=conversations,
    labels=st.dictionaries(st.sampled_from(SIDES), st.sampled_from(LABELS)),
    categories=st.lists(texts, max_size=2).map(tuple),
    source=texts,
    language=texts,
    group=texts,
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(conversations)
@settings(max_examples=60, deadline=None)
def test_messages_there_and_back(conversation):
    assert Conversation.from_messages(conversation.to_messages()) == conversation
    through_json = json.loads(json.dumps(conversation.to_messages()))
    assert Conversation.from_messages(through_json) == conversation


@given(st.lists(examples, max_size=3))
@settings(max_examples=40, deadline=None)
def test_files_there_and_back(tmp_path_factory, written):
    path = tmp_path_factory.getbasetemp() / "round.jsonl"
    assert write_jsonl(path, written) == len(written)
    assert list(read_jsonl(path)) == written


keys = st.sampled_from(
    [
        "role",
        "content",
        "tool_calls",
        "name",
        "tool_call_id",
        "refusal",
        "function",
        "type",
        "text",
        "arguments",
        "id",
    ]
)
odd = st.recursive(
    values | st.sampled_from(["user", "assistant", "text"]),
    lambda inner: st.dictionaries(keys, inner, max_size=4) | st.lists(inner, max_size=2),
    max_leaves=12,
)


@given(odd)
@settings(max_examples=200, deadline=None)
def test_whatever_comes_is_read_or_refused_in_words(value):
    for read in (
        Conversation.from_messages,
        lambda v: Example.from_row(v if isinstance(v, dict) else {"id": v}),
    ):
        try:
            read(value)
        except DataError as error:
            assert error.problem and error.remedy
