"""Cards and suites."""

import pytest

from guardkeel.conversation import Conversation, Example
from guardkeel.errors import ConfigError, DataError
from guardkeel.evaluation.suites.card import SuiteCard, parse_card, read_card
from guardkeel.evaluation.suites.suite import build, judged_texts, sides_present, split_many

PROMPT = {"prompt": "q", "labels": {"prompt": "unsafe"}}


def card(**fields):
    return SuiteCard.model_validate({"name": "s", "reference": "x.jsonl", **fields})


def ask(identity, text, label="safe", **fields):
    return Example(identity, Conversation.of(text), {"prompt": label}, **fields)


def parse(suite, **tables):
    return parse_card({"suite": suite, **tables}, where="c.toml", folder="/cards")


def test_ten_lines_make_a_suite():
    got = parse({"name": "a", "reference": "a.csv"}, mapping=PROMPT, splits={"fixed": "test"})
    assert (got.name, got.version, got.splits.fixed, got.mapping.prompt) == ("a", "1", "test", "q")
    assert [p.reference for p in got.files] == ["a.csv"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"suite": {"name": "a", "reference": "x"}, "mappings": {}}, "unknown table 'mappings'"),
        ({"mapping": {}}, "no [suite] table"),
        ({"suite": "a"}, "no [suite] table"),
        ({"suite": {"name": "a", "reference": "x", "license": "MIT"}}, "license: Extra inputs"),
        ({"suite": {"name": "a", "reference": "x", "splits": {}}}, "[suite] has no field 'splits'"),
        ({"suite": {"name": "a", "reference": "x", "copies": []}}, "[suite] has no field 'copies'"),
        ({"suite": {"name": "a", "reference": "x", "read_from": "y"}}, "no field 'read_from'"),
        ({"suite": {"name": "a", "reference": "x", "tier": "free"}}, "tier: Input should be"),
        ({"suite": {"name": "a", "reference": "x", "checked": "yes"}}, "checked: Input should be"),
        ({"suite": {"name": "a b", "reference": "x"}}, "name: String should match"),
        ({"suite": {"name": "a b", "reference": "x"}}, "not 'a b'"),
        ({"suite": {"name": "a"}}, "give either a reference or [[parts]]"),
        ({"suite": {"name": "a", "reference": "x"}, "parts": [{"reference": "y"}]}, "give either"),
        ({"suite": {"name": "a", "reference": ["x", ""]}}, "a reference is empty"),
        (
            {"suite": {"name": "a", "reference": "x"}, "splits": {"proportions": [0.5, 0.5, 0.5]}},
            "add up to 1",
        ),
        (
            {"suite": {"name": "a", "reference": "x"}, "splits": {"proportions": [1.5, -0.5, 0]}},
            "not be negative",
        ),
        ({"suite": {"name": "a", "reference": "x"}, "splits": {"fixed": "train"}}, "splits.fixed"),
        (
            {"suite": {"name": "a", "reference": "x"}, "mapping": {"promt": "q"}},
            "mapping.labels: Field required",
        ),
        (
            {"suite": {"name": "a"}, "parts": [{"reference": "y", "mapping": {"prompt": "q"}}]},
            "Field required",
        ),
    ],
)
def test_bad_cards_name_the_field(data, says):
    with pytest.raises(ConfigError) as e:
        parse_card(data, where="c.toml")
    assert e.value.problem.startswith("c.toml: ")
    assert says in e.value.problem
    assert e.value.remedy


def test_card_files(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('[suite]\nname = "a"\nreference = "a.jsonl"\n')
    assert read_card(path).folder == str(tmp_path)
    path.write_text("[suite\n")
    with pytest.raises(ConfigError, match=r"c\.toml: not TOML"):
        read_card(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not TOML"):
        read_card(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_card(tmp_path / "no.toml")


def test_parts_change_the_mapping_key_by_key():
    got = parse(
        {"name": "a"},
        mapping={**PROMPT, "source": "s"},
        parts=[{"reference": "x"}, {"reference": "y", "mapping": {"labels": {"prompt": "safe"}}}],
    )
    assert got.mapping_of(0) == got.mapping
    second = got.mapping_of(1)
    assert (second.labels["prompt"].constant, second.prompt, second.source) == ("safe", "q", "s")


def test_references_do_not_depend_on_the_place(monkeypatch):
    monkeypatch.delenv("GUARDKEEL_DATA", raising=False)
    got = parse({"name": "a", "reference": "x"})
    assert got.located("x/y.csv") == "path:/cards/x/y.csv"
    assert got.located("path:x.csv#sha256=ab") == "path:/cards/x.csv#sha256=ab"
    assert got.located("path:/abs.csv") == "path:/abs.csv"
    assert got.located("pypi:a==1/b") == "pypi:a==1/b"
    assert got.located("hub:a/b/c") == "hub:a/b/c"
    assert got.located("data:d/e.csv", "/data") == "path:/data/d/e.csv"
    with pytest.raises(ConfigError, match="needs a data folder") as e:
        got.located("data:d/e.csv#sha256=00")
    assert e.value.remedy == "set GUARDKEEL_DATA to the folder that holds d/e.csv"
    monkeypatch.setenv("GUARDKEEL_DATA", "/env")
    assert got.located("data:d/e.csv") == "path:/env/d/e.csv"


def test_items_name_suite_example_and_side():
    both = Example("e1", Conversation.of("q", "a"), {"response": "safe", "prompt": "unsafe"})
    suite = build(card(splits={"fixed": "test"}), [both, ask("e2", "z"), Example("e3", Conversation.of("n"))])
    assert [(i.judgement.id, i.side, i.label, i.split) for i in suite.items()] == [
        ("s/e1#prompt", "prompt", "unsafe", "test"),
        ("s/e1#response", "response", "safe", "test"),
        ("s/e2#prompt", "prompt", "safe", "test"),
    ]
    assert suite.items("test") == suite.items()
    assert suite.items()[0].example is both
    assert suite.items()[0].judgement.conversation is both.conversation
    assert [i.judgement.id for i in suite.items(sides=["response"])] == ["s/e1#response"]
    assert (suite.card.examples, suite.card.unsafe, suite.card.safe, suite.card.one_class) == (3, 1, 2, None)


def test_empty_and_unknown_splits():
    suite = build(card(splits={"fixed": "test"}), [ask("1", "a")])
    with pytest.raises(DataError, match="fit split has no items") as e:
        suite.items("fit")
    assert "it has test 1" in e.value.remedy
    with pytest.raises(DataError, match="no items on side response"):
        suite.items(sides=["response"])
    with pytest.raises(DataError, match="unknown split 'train'"):
        suite.items("train")


def test_one_class_is_flagged():
    assert build(card(), [ask("1", "a")]).card.one_class == "safe"
    assert build(card(), [ask("1", "a", "unsafe")]).card.one_class == "unsafe"
    with pytest.raises(DataError, match="all items are unsafe, but they are not"):
        build(card(one_class="unsafe"), [ask("1", "a")])


@pytest.mark.parametrize(
    ("examples", "fields", "says"),
    [
        ([], {}, "has no examples (4 records left out)"),
        ([Example("1", Conversation.of("a"))], {}, "has no labels"),
        ([ask("1", "a"), ask("1", "b")], {}, "id '1' is there twice"),
        ([Example("1", Conversation.of("a"), {"response": "safe"})], {}, "labelled on side 'response'"),
        ([ask("1", "a")], {"examples": 2}, "1 examples, but its card says 2"),
        ([ask("1", "a")], {"unsafe": 1}, "0 unsafe, but its card says 1"),
        ([ask("1", "a")], {"safe": 0}, "1 safe, but its card says 0"),
    ],
)
def test_what_no_suite_can_be_made_of(examples, fields, says):
    with pytest.raises(DataError) as e:
        build(card(**fields), examples, left_out=4)
    assert says in e.value.problem
    assert e.value.problem.startswith("suite 's'")
    assert e.value.remedy


def test_digest_is_of_the_content():
    rows = [ask("1", "a"), ask("2", "b")]
    one, other = build(card(), rows), build(card(version="2"), rows[::-1])
    assert one.digest == other.digest
    assert one.digest != build(card(), [ask("1", "a"), ask("2", "b", "unsafe")]).digest
    assert len(one.digest) == 64


def test_judged_texts():
    talk = Conversation.from_messages(
        [
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": "reply"},
            {"role": "user", "content": "please do it again now"},
            {
                "role": "assistant",
                "content": "done",
                "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}],
            },
        ]
    )
    asked, pair = "please do it again now", "please do it again now\ndone\nf({})"
    assert judged_texts(Example("1", talk, {"prompt": "safe"})) == (asked,)
    assert judged_texts(Example("1", talk, {"response": "safe"})) == (pair, asked)
    assert judged_texts(Example("1", talk, {"prompt": "safe", "response": "safe"})) == (asked, pair)
    assert judged_texts(Example("1", talk, {"trajectory": "safe"})) == (talk.text,)
    assert judged_texts(Example("1", talk)) == (talk.text,)
    assert judged_texts(Example("1", Conversation.of("hi", "ho"), {"response": "safe"})) == ("hi\nho",)
    assert judged_texts(Example("1", Conversation.of("hi"), {"response": "safe"})) == ("hi\n",)
    alone = Conversation.from_messages([{"role": "assistant", "content": "b"}])
    assert judged_texts(Example("1", alone, {"response": "safe"})) == ("\nb",)
    system = Conversation.from_messages([{"role": "system", "content": "s"}])
    assert judged_texts(Example("1", system, {"prompt": "safe"})) == ("",)


def test_groups_sources_and_declared_splits_reach_the_splits():
    rows = [
        ask("1", "first text here", group="g"),
        ask("2", "another one", group="g"),
        ask("3", "third", source="bank"),
    ]
    suite = build(card(splits={"by_source": {"bank": [0, 1, 0]}}), rows, declared={"2": "calibrate"})
    assert dict(suite.splits) == {"1": "calibrate", "2": "calibrate", "3": "calibrate"}
    assert [m.group for m in suite.members()] == ["s/g", "s/g", ""]


def test_groups_of_different_suites_are_different():
    one = build(card(splits={"proportions": [1, 0, 0]}), [ask("1", "some text", group="1")])
    two = build(card(name="t", splits={"fixed": "test"}), [ask("1", "other words", group="1")])
    first, second = split_many([one, two])
    assert (first.splits["1"], second.splits["1"]) == ("fit", "test")


def test_joint_splits_replace_the_suites_own():
    one = build(
        card(splits={"proportions": [1, 0, 0]}), [ask("1", "the same text"), ask("2", "a different text")]
    )
    two = build(card(name="t", splits={"fixed": "test"}), [ask("9", "The same TEXT!")])
    assert one.splits["1"] == "fit"
    first, second = split_many([one, two])
    assert dict(first.splits) == {"1": "test", "2": "fit"}
    assert dict(second.splits) == {"9": "test"}
    assert [i.judgement.id for i in first.items("fit")] == ["s/2#prompt"]
    with pytest.raises(DataError, match="suite 's' is given twice"):
        split_many([one, one])


def test_sides():
    assert sides_present(Conversation.of("a")) == {"prompt", "trajectory"}
    assert sides_present(Conversation.of("a", "b")) == {"prompt", "response", "trajectory"}
    alone = Conversation.from_messages([{"role": "assistant", "content": "b"}])
    assert sides_present(alone) == {"response", "trajectory"}
