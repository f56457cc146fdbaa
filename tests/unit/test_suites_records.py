"""Mappings of records whose labels, replies, turns or categories lie in several fields, or are not there."""

import pytest

from guardkeel.errors import DataError
from guardkeel.evaluation.suites.applying import apply
from guardkeel.evaluation.suites.mapping import Mapping
from guardkeel.evaluation.suites.readers import RawRow

UNSAFE = {"prompt": "q", "labels": {"prompt": "unsafe"}}


def example(mapping, fields):
    mapped = apply(Mapping.model_validate(mapping), RawRow("f.csv:3", 7, fields))
    return mapped and mapped.example


def problem(mapping, fields):
    with pytest.raises(DataError) as e:
        example(mapping, fields)
    assert e.value.problem.startswith("f.csv:3: ")
    return e.value


# Several fields, one label


def united(values, **rule):
    """The label of three fields a, b and c; a field whose value is None is not there."""
    rule = {"field": ["a", "b", "c"], "values": {"0": "safe", "1": "unsafe"}, **rule}
    fields = {"q": "x"} | {k: v for k, v in zip("abc", values, strict=True) if v != "absent"}
    got = example({"prompt": "q", "labels": {"prompt": rule}}, fields)
    return got and got.labels["prompt"]


@pytest.mark.parametrize(
    ("values", "any_of", "majority"),
    [
        ((0, 0, 0), "safe", "safe"),
        ((0, 0, 1), "unsafe", "safe"),
        ((1, 1, 0), "unsafe", "unsafe"),
        ((1, "absent", None), "unsafe", "unsafe"),
        ((0, "absent", 0), None, "safe"),
        ((0, None, 0), None, "safe"),
        ((0, 1, "absent"), "unsafe", None),
        (("absent", "absent", "absent"), None, None),
    ],
)
def test_fields_united(values, any_of, majority):
    rule = {"skip": ["null"], "optional": True}
    assert united(values, combine="any", **rule) == any_of
    assert united(values, combine="majority", **rule) == majority
    assert united(values, combine="any", otherwise="safe", **rule) == (any_of or "safe")


def test_an_absent_label_is_an_error_unless_it_is_declared():
    with pytest.raises(DataError, match="field 'b' is missing"):
        united((0, "absent", 0), combine="any")
    with pytest.raises(DataError, match="unknown label 2"):
        united((0, 2, 0), combine="any", optional=True)


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("Safe", "safe"),
        ("Needs Caution", None),
        ("Needs Caution, Threat", "unsafe"),
        ("contrast_homonyms", "safe"),
        ("contrast_discr_1", "unsafe"),
        ("Violence", "unsafe"),
    ],
)
def test_values_by_prefix(value, label):
    rule = {
        "field": "l",
        "values": {"Safe": "safe", "*": "unsafe", "contrast_*": "safe", "contrast_discr*": "unsafe"},
        "skip": ["Needs Caution"],
    }
    got = example({"prompt": "q", "labels": {"prompt": rule}}, {"q": "x", "l": value})
    assert (got and got.labels["prompt"]) == label


@pytest.mark.parametrize("value", [None, "", "  ", "null"])
def test_nothing_is_never_meant_by_a_prefix(value):
    rule = {"field": "l", "values": {"*": "unsafe"}}
    error = problem({"prompt": "q", "labels": {"prompt": rule}}, {"q": "x", "l": value})
    assert "unknown label" in error.problem


# Replies that may be absent, turns from fields, texts with marks


PAIR = {
    "prompt": "q",
    "response": "r",
    "response_optional": True,
    "labels": {"prompt": {"field": "a", "skip": ["null"]}, "response": {"field": "b", "skip": ["null"]}},
}


@pytest.mark.parametrize(
    ("fields", "roles", "labels"),
    [
        (
            {"r": "y", "a": "safe", "b": "unsafe"},
            ["user", "assistant"],
            {"prompt": "safe", "response": "unsafe"},
        ),
        ({"r": "y", "a": "safe", "b": None}, ["user", "assistant"], {"prompt": "safe"}),
        ({"r": None, "a": "unsafe", "b": None}, ["user"], {"prompt": "unsafe"}),
        ({"r": " ", "a": "unsafe", "b": "safe"}, ["user"], {"prompt": "unsafe"}),
        ({"r": "", "a": None, "b": "safe"}, None, None),
        ({"r": "y", "a": None, "b": None}, None, None),
    ],
)
def test_a_record_without_a_reply_is_judged_on_its_prompt(fields, roles, labels):
    got = example(PAIR, {"q": "x", **fields})
    assert (got and [t.role for t in got.conversation.turns]) == roles
    assert (got and dict(got.labels)) == labels


def test_a_missing_reply_field_is_an_error_even_so():
    assert "field 'r' is missing" in problem(PAIR, {"q": "x", "a": "safe", "b": None}).problem
    must = {**PAIR, "response_optional": False}
    assert "holds no text" in problem(must, {"q": "x", "r": "", "a": "safe", "b": None}).problem


TURNS = {
    "turns": [
        {"role": "system", "field": "who:json"},
        {"role": "user", "field": "task"},
        {"role": "tool", "field": "page"},
    ],
    "labels": {"trajectory": "unsafe"},
}


def test_turns_from_fields():
    got = example(TURNS, {"who": {"age": 9, "ä": [True]}, "task": "go", "page": "read"})
    assert [(t.role, t.content) for t in got.conversation.turns] == [
        ("system", '{"age": 9, "ä": [true]}'),
        ("user", "go"),
        ("tool", "read"),
    ]
    short = example(TURNS, {"who": None, "task": "go", "page": ""})
    assert [t.role for t in short.conversation.turns] == ["user"]
    assert (
        "'who:json + task + page' holds no text"
        in problem(TURNS, {"who": None, "task": None, "page": ""}).problem
    )
    assert "must be text" in problem(TURNS, {"who": 1, "task": {"a": 1}, "page": ""}).problem
    assert "task:json reads it" in problem(TURNS, {"who": 1, "task": {"a": 1}, "page": ""}).remedy
    assert "field 'who' is missing" in problem(TURNS, {"task": "go"}).problem


TALK = {
    "messages": {"field": "c", "marks": {"A: ": "user", "B: ": "assistant"}, "line_end": "|"},
    "response": "r",
    "labels": {"response": "unsafe"},
}


def test_a_text_with_marks_and_the_reply_to_it():
    got = example(TALK, {"c": "A: one|more|B: two|A: |three|", "r": "four"})
    assert [(t.role, t.content) for t in got.conversation.turns] == [
        ("user", "one\nmore"),
        ("assistant", "two"),
        ("user", "three"),
        ("assistant", "four"),
    ]
    assert "does not begin with 'A: ' or 'B: '" in problem(TALK, {"c": "C: one", "r": "x"}).problem
    assert "holds no text" in problem(TALK, {"c": " ", "r": "x"}).problem
    assert "'c' must be text" in problem(TALK, {"c": [], "r": "x"}).problem
    assert "'r' holds no text" in problem(TALK, {"c": "A: one", "r": ""}).problem


def test_rounds_of_messages_are_one_conversation():
    agent = {
        "field": "t",
        "role": "from",
        "content": ["say", "think", "act"],
        "roles": {"human": "user", "bot": "assistant"},
    }
    rounds = [[{"from": "human", "say": "a"}], [{"from": "bot", "think": None, "act": "b"}]]
    got = example({"messages": agent, "labels": {"trajectory": "unsafe"}}, {"t": rounds}).conversation
    assert [(t.role, t.content) for t in got.turns] == [("user", "a"), ("assistant", "b")]


def test_categories_in_one_text_and_in_fields_of_their_own():
    text = {
        **UNSAFE,
        "categories": "c",
        "category_separator": ",",
        "category_map": {"Safe": [], "Hate": "Threat"},
    }
    assert example(text, {"q": "x", "c": "Violence, Hate,Safe"}).categories == ("Violence", "Threat")
    assert example(text, {"q": "x", "c": None}).categories == ()
    flags = {**UNSAFE, "categories": ["S", "V", "H"], "category_map": {"S": "Sexual", "V": "Violence"}}
    assert example(flags, {"q": "x", "S": 1, "V": "0"}).categories == ("Sexual",)
    assert example(flags, {"q": "x", "S": None, "V": True, "H": 0}).categories == ("Violence",)


def test_changed_keys():
    base = Mapping.model_validate({**UNSAFE, "id": "i", "keep": [{"field": "a", "values": ["x"]}]})
    got = base.changed({"prompt": "p", "id": "", "keep": [], "source": {"constant": "s"}})
    assert (got.prompt, got.id, got.keep, got.source.constant) == ("p", "", [], "s")
    assert got.labels == base.labels
