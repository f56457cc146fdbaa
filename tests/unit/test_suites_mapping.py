"""Mappings: foreign records to examples, and refusal of what is not declared."""

import json

import pytest
from pydantic import ValidationError

from guardkeel.conversation import Conversation
from guardkeel.errors import DataError
from guardkeel.evaluation.suites.applying import apply
from guardkeel.evaluation.suites.mapping import Mapping
from guardkeel.evaluation.suites.readers import RawRow
from guardkeel.evaluation.suites.values import lookup, value_key


def example(mapping, fields, number=7, prefix=""):
    mapped = apply(Mapping.model_validate(mapping), RawRow("f.csv:3", number, fields), prefix=prefix)
    return mapped and mapped.example


def problem(mapping, fields):
    with pytest.raises(DataError) as e:
        example(mapping, fields)
    assert e.value.problem.startswith("f.csv:3: ")
    return e.value


UNSAFE = {"prompt": "q", "labels": {"prompt": "unsafe"}}


def test_everything_at_once():
    got = example(
        {
            "id": "n",
            "prompt": ["context", "q.text"],
            "response": "r",
            "labels": {
                "prompt": "safe",
                "response": {"field": "bad", "values": {"1": "unsafe", "0": "safe"}},
            },
            "categories": "kinds",
            "category_map": {
                "guns": "Guns and Illegal Weapons",
                "tax": ["Illegal Activity", "Fraud/Deception"],
                "*": [],
            },
            "source": {"constant": "forum"},
            "language": "lang",
            "group": "n",
        },
        {
            "n": 12,
            "context": " ",
            "q": {"text": "hello"},
            "r": "hi",
            "bad": 1.0,
            "kinds": ["guns", "tax", "other"],
            "lang": None,
        },
        prefix="p-",
    )
    assert got.to_row() == {
        "id": "p-12",
        "messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}],
        "labels": {"prompt": "safe", "response": "unsafe"},
        "categories": ["Guns and Illegal Weapons", "Illegal Activity", "Fraud/Deception"],
        "source": "forum",
        "group": "12",
    }


def test_rows_are_numbered_without_an_id():
    assert example(UNSAFE, {"q": "x"}, prefix="train-").id == "train-7"


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (1, "1"),
        (1.0, "1"),
        ("1.0", "1"),
        (" yes ", "yes"),
        (0.5, "0.5"),
    ],
)
def test_value_keys(value, key):
    assert value_key(value) == key


@pytest.mark.parametrize(("value", "label"), [("safe", "safe"), ("unsafe", "unsafe")])
def test_a_label_field_may_hold_the_labels_themselves(value, label):
    assert example({"prompt": "q", "labels": {"prompt": {"field": "l"}}}, {"q": "x", "l": value}).labels == {
        "prompt": label
    }


def test_unknown_label_names_value_and_remedy():
    rule = {
        "prompt": "q",
        "labels": {"prompt": {"field": "l", "values": {"bad": "unsafe"}, "skip": ["unsure"]}},
    }
    error = problem(rule, {"q": "x", "l": "meh"})
    assert error.problem == "f.csv:3: unknown label 'meh' in field 'l'"
    assert "known values are bad" in error.remedy
    assert "labels.prompt.skip" in error.remedy
    assert example(rule, {"q": "x", "l": "unsure"}) is None
    assert "unknown label None" in problem(rule, {"q": "x", "l": None}).problem


@pytest.mark.parametrize(
    ("scores", "label"),
    [
        ((0, 0, 0), "safe"),
        ((0, 0, 0.25), None),
        ((0.5, 0.75, 1), "unsafe"),
        ((1, "", ""), "unsafe"),
        (("", "", ""), None),
    ],
)
def test_graded_labels_use_the_mean_and_leave_the_middle_out(scores, label):
    rule = {"field": ["a", "b", "c"], "safe_up_to": 0.0, "unsafe_from": 0.75, "skip": [""]}
    got = example(
        {"prompt": "q", "labels": {"prompt": rule}}, {"q": "x", **dict(zip("abc", scores, strict=True))}
    )
    assert (got.labels["prompt"] if got else None) == label


@pytest.mark.parametrize("value", ["much", None, "nan", True])
def test_graded_label_that_is_no_number(value):
    rule = {"field": "a", "safe_up_to": 0.0, "unsafe_from": 0.75}
    assert (
        "field 'a' must be a number"
        in problem({"prompt": "q", "labels": {"prompt": rule}}, {"q": "x", "a": value}).problem
    )


def test_filters():
    mapping = {**UNSAFE, "keep": [{"field": "kind", "values": ["a", 1]}], "drop": [{"field": "n", "max": 3}]}
    kept = [
        (k, n) for k in ("a", "b", "1") for n in (3, "3.5") if example(mapping, {"q": "x", "kind": k, "n": n})
    ]
    assert kept == [("a", "3.5"), ("1", "3.5")]
    low = {**UNSAFE, "keep": [{"field": "n", "min": 2}]}
    assert [n for n in (1, 2, 9) if example(low, {"q": "x", "n": n})] == [2, 9]
    assert "must be a number" in problem(low, {"q": "x", "n": "many"}).problem


@pytest.mark.parametrize("path", ["no", "a.no", "a.0", "l.5", "l.x", "s.0"])
def test_missing_field_lists_what_there_is(path):
    with pytest.raises(DataError, match=f"field '{path}' is missing") as e:
        lookup({"a": {"b": 1}, "l": [1], "s": "xy"}, path)
    assert e.value.remedy == "the record has a, l, s"


def test_a_field_whose_name_holds_a_dot():
    assert lookup({"a.b": 1, "a": {"b": 2}}, "a.b") == 1
    assert lookup({"a": [{"b": 2}]}, "a.0.b") == 2


@pytest.mark.parametrize("value", ["", "  ", None, True, [1]])
def test_bad_ids(value):
    assert "must be a non-empty id" in problem({**UNSAFE, "id": "i"}, {"q": "x", "i": value}).problem


@pytest.mark.parametrize(
    ("value", "says"), [("", "holds no text"), (None, "holds no text"), (3, "must be text, not 3")]
)
def test_bad_texts(value, says):
    assert says in problem(UNSAFE, {"q": value}).problem
    reply = {**UNSAFE, "response": "r"}
    assert says in problem(reply, {"q": "x", "r": value}).problem


def test_messages_plain_and_as_json_text():
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    mapping = {"messages": "m", "labels": {"response": "safe"}}
    assert example(mapping, {"m": messages}).conversation == Conversation.of("a", "b")
    assert example(mapping, {"m": json.dumps(messages)}).conversation == Conversation.of("a", "b")
    assert "neither a list of messages" in problem(mapping, {"m": "hello"}).problem
    assert "unknown role 'bot'" in problem(mapping, {"m": [{"role": "bot", "content": "x"}]}).problem


AGENT = {
    "messages": {
        "field": "t.0",
        "role": "from",
        "content": ["say", "think", "act"],
        "roles": {"human": "user", "bot": "assistant"},
    },
    "labels": {"trajectory": "unsafe"},
}


def test_messages_under_other_names():
    turns = [
        {"from": "human", "say": "go"},
        {"from": "bot", "think": "hm", "act": ""},
        {"from": "bot", "think": "a", "act": "b"},
    ]
    got = example(AGENT, {"t": [turns]}).conversation
    assert [(t.role, t.content) for t in got.turns] == [
        ("user", "go"),
        ("assistant", "hm"),
        ("assistant", "a\nb"),
    ]


@pytest.mark.parametrize(
    ("turns", "says"),
    [
        ("no", "neither a list of messages"),
        ({"a": 1}, "must be a list of messages"),
        ([3], "'t.0.0' must be an object"),
        ([{"say": "x"}], "field 'from' is missing"),
        ([{"from": "human"}], "'t.0.0' has none of say, think, act"),
        ([{"from": ["x"], "say": "x"}], "unknown role ['x']"),
        ([{"from": "human", "say": 5}], "'t.0.0.say' must be text"),
        ([], "non-empty list"),
    ],
)
def test_bad_messages(turns, says):
    assert says in problem(AGENT, {"t": [turns]}).problem


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Privacy", ("PII/Privacy",)),
        (["Hate", "Hate", " "], ("Hate/Identity Hate",)),
        ({"Violence": True, "Sexual": False}, ("Violence",)),
        (None, ()),
        ("", ()),
    ],
)
def test_categories_take_home_names(value, expected):
    assert example({**UNSAFE, "categories": "c"}, {"q": "x", "c": value}).categories == expected


def test_constant_categories_only_for_unsafe():
    rule = {"prompt": "q", "labels": {"prompt": {"field": "l"}}, "categories": {"constant": ["Threat"]}}
    assert example(rule, {"q": "x", "l": "unsafe"}).categories == ("Threat",)
    assert example(rule, {"q": "x", "l": "safe"}).categories == ()


@pytest.mark.parametrize("value", [3, [3]])
def test_bad_categories(value):
    assert (
        "categories must be names" in problem({**UNSAFE, "categories": "c"}, {"q": "x", "c": value}).problem
    )


def test_source_must_be_one_value():
    assert "source must be one value" in problem({**UNSAFE, "source": "s"}, {"q": "x", "s": []}).problem


def test_declared_splits():
    def split(value, values):
        mapping = Mapping.model_validate({**UNSAFE, "split": "s", "split_values": values})
        return apply(mapping, RawRow("f.csv:3", 1, {"q": "x", "s": value})).split

    assert split("train", {"train": "fit"}) == "fit"
    assert split("test", {}) == "test"
    with pytest.raises(DataError, match="unknown split 'dev'"):
        split("dev", {"train": "fit"})


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        ({"labels": {"prompt": "safe"}}, "give one of prompt, messages and turns"),
        (
            {"prompt": "q", "messages": "m", "labels": {"prompt": "safe"}},
            "give one of prompt, messages and turns",
        ),
        ({"prompt": "q", "labels": {}}, "at least one side"),
        ({"prompt": "q"}, "Field required"),
        ({"prompt": "q", "labels": {"response": "safe"}}, "labels.response needs a response"),
        (
            {"turns": [{"role": "user", "field": "a"}], "response": "r", "labels": {"prompt": "safe"}},
            "response goes with prompt",
        ),
        ({"turns": [{"role": "bot", "field": "a"}], "labels": {"prompt": "safe"}}, "Input should be"),
        ({**UNSAFE, "response_optional": True}, "response_optional needs a response"),
        (
            {"prompt": "q", "labels": {"prompt": {"field": "l", "combine": "any"}}},
            "combine goes with several",
        ),
        (
            {"prompt": "q", "labels": {"prompt": {"field": "l", "otherwise": "safe"}}},
            "otherwise goes with combine",
        ),
        (
            {"prompt": "q", "labels": {"prompt": {"constant": "safe", "combine": "any"}}},
            "takes no values, skip, combine",
        ),
        ({"messages": {"field": "m", "line_end": ""}, "labels": {"prompt": "safe"}}, "at least 1 character"),
        ({"prompt": "q", "labels": {"side": "safe"}}, "'prompt', 'response' or 'trajectory'"),
        ({"prompt": "q", "labels": {"prompt": "harmful"}}, "valid dictionary"),
        ({"prompt": "q", "labels": {"prompt": {}}}, "either a constant or a field"),
        (
            {"prompt": "q", "labels": {"prompt": {"constant": "safe", "field": "l"}}},
            "either a constant or a field",
        ),
        ({"prompt": "q", "labels": {"prompt": {"constant": "safe", "skip": ["a"]}}}, "takes no values"),
        (
            {"prompt": "q", "labels": {"prompt": {"field": "l", "safe_up_to": 0}}},
            "both safe_up_to and unsafe_from",
        ),
        ({"prompt": "q", "labels": {"prompt": {"field": "l", "safe_up_to": 1, "unsafe_from": 0}}}, "below"),
        ({"prompt": "q", "labels": {"prompt": {"field": ["l", "m"]}}}, "several fields need"),
        ({**UNSAFE, "keep": [{"field": "a"}]}, "either values, or min and max"),
        ({**UNSAFE, "keep": [{"field": "a", "values": ["x"], "min": 1}]}, "either values, or min and max"),
        ({**UNSAFE, "promt": "q"}, "Extra inputs"),
        ({**UNSAFE, "format": "xls"}, "Input should be"),
    ],
)
def test_bad_mappings(mapping, says):
    with pytest.raises(ValidationError, match=says):
        Mapping.model_validate(mapping)
