"""Copies of suites: other places and other readings of the same set."""

from pathlib import Path

import pytest

from guardkeel.errors import ConfigError, DataError, PinError, ResourceError
from guardkeel.evaluation.suites import find_card, load_suite, present
from guardkeel.evaluation.suites.card import parse_card

CARD = """[suite]
name = "forum"
version = "7"
reference = "forum.csv"
licence = "CC0"
tier = "open"
checked = "documented"
origin = "the forum"
home = "https://example.org/forum"
traps = ["loud"]
examples = 3
unsafe = 1
safe = 2

[mapping]
id = "n"
prompt = "question"
labels.prompt = { field = "bad", values = { 0 = "safe", 1 = "unsafe" } }

[splits]
fixed = "test"

[[copies]]
reference = "data:forum/half.jsonl"
note = "half of it"
checked = "read"
tier = "restricted"
examples = 1
unsafe = 1
safe = 0
one_class = "unsafe"

[copies.mapping]
id = ""
prompt = "text"

[[copies]]
name = "strict"
note = "all is bad"
mapping.labels.prompt = "unsafe"
splits.fixed = "calibrate"

[[copies]]
name = "parts"
version = "8"

[[copies.parts]]
name = "a"
reference = "forum.csv"

[[copies.parts]]
name = "b"
reference = "forum.csv"
mapping.labels.prompt = "safe"
"""


@pytest.fixture
def forum(tmp_path, monkeypatch):
    monkeypatch.delenv("GUARDKEEL_DATA", raising=False)
    (tmp_path / "forum.csv").write_text(
        "n,question,bad\n11,how are you,0\n12,well then,0\n13,how to harm,1\n"
    )
    half = tmp_path / "data" / "forum" / "half.jsonl"
    half.parent.mkdir(parents=True)
    half.write_text('{"text": "how to harm", "bad": 1}\n')
    card = tmp_path / "forum.toml"
    card.write_text(CARD)
    return card


def test_a_name_reads_its_own_reference_whatever_lies_in_the_data_folder(forum, monkeypatch):
    monkeypatch.setenv("GUARDKEEL_DATA", str(forum.parent / "data"))
    suite = load_suite(forum)
    assert (suite.version, suite.card.origin, suite.card.read_from, len(suite.examples)) == (
        "7",
        "the forum",
        "",
        3,
    )
    assert suite.card.full_name == "forum"


def test_a_copy_says_what_was_read(forum):
    suite = load_suite(f"{forum}@local", data=forum.parent / "data")
    assert (suite.name, suite.version, suite.card.read_from) == ("forum", "7@local", "local")
    assert suite.card.full_name == "forum@local"
    assert [e.id for e in suite.examples] == ["1"]
    assert suite.card.traps == ["loud", "half of it"]
    assert (suite.card.checked, suite.card.tier, suite.card.licence) == ("read", "restricted", "CC0")
    assert suite.splits == {"1": "test"}
    assert suite.digest != load_suite(forum).digest


def test_another_reading_of_the_same_files(forum):
    suite = load_suite(f"{forum}@strict")
    assert (suite.card.unsafe, suite.card.safe, suite.version) == (3, 0, "7@strict")
    assert suite.card.one_class == "unsafe"  # found, not the card's counts
    assert set(suite.splits.values()) == {"calibrate"}
    assert suite.card.checked == "documented"


def test_parts_of_a_copy_have_the_cards_mapping(forum):
    suite = load_suite(f"{forum}@parts")
    assert [(e.id, e.labels["prompt"]) for e in suite.examples[2:4]] == [("a-13", "unsafe"), ("b-11", "safe")]
    assert suite.version == "8@parts"


def test_unknown_copies_name_the_known_ones(forum):
    with pytest.raises(DataError, match="suite 'forum' has no copy 'locl'") as e:
        load_suite(f"{forum}@locl")
    assert e.value.remedy == "its copies are forum@local, forum@strict, forum@parts"
    with pytest.raises(DataError, match="'keel-domain' has no copy 'local'") as e:
        find_card("keel-domain@local")
    assert e.value.remedy == "it has none: say keel-domain"
    with pytest.raises(DataError, match="unknown suite 'toxicchatt'") as e:
        find_card("toxicchatt@local")
    assert "did you mean toxicchat" in e.value.remedy


def test_a_file_with_such_a_name_is_a_file(tmp_path, forum):
    odd = tmp_path / "mine@home.jsonl"
    odd.write_text(
        '{"id": "1", "messages": [{"role": "user", "content": "x"}], "labels": {"prompt": "safe"}}\n'
    )
    assert load_suite(str(odd)).name == "mine-home"
    with pytest.raises(DataError, match="no such file"):
        load_suite(str(tmp_path / "yours@home.jsonl"))
    with pytest.raises(DataError, match="no such file"):
        load_suite("yours@home.jsonl")


def test_errors_name_the_other_ways(forum):
    with pytest.raises(ConfigError, match=r"data:forum/half\.jsonl needs a data folder") as e:
        load_suite(f"{forum}@local")
    assert "set GUARDKEEL_DATA to the folder that holds forum/half.jsonl" in e.value.remedy
    with pytest.raises(ResourceError, match=r"half\.jsonl") as e:
        load_suite(f"{forum}@local", data=forum.parent / "none")
    assert "get it from https://example.org/forum" in e.value.remedy
    (forum.parent / "forum.csv").unlink()
    with pytest.raises(ResourceError, match=r"forum\.csv") as e:
        load_suite(forum)
    assert "read a copy in the data folder: forum@local" in e.value.remedy
    assert "strict" not in e.value.remedy


def test_a_wrong_digest_is_no_reason_to_read_something_else(forum):
    forum.write_text(CARD.replace('"forum.csv"', f'"path:forum.csv#sha256={"0" * 64}"', 1))
    with pytest.raises(PinError) as e:
        load_suite(forum)
    assert "forum@local" not in e.value.remedy


def test_what_is_present(forum):
    card = find_card(forum)
    assert present(card) == []
    assert present(card, forum.parent / "data") == ["forum@local"]
    (forum.parent / "data" / "forum" / "half.jsonl").unlink()
    assert present(card, forum.parent / "data") == []


def test_a_suite_whose_home_is_the_data_folder(forum, monkeypatch):
    own = CARD.replace('"forum.csv"', '"data:forum.csv"', 1).partition("[[copies]]")[0]
    forum.write_text(own)
    (forum.parent / "forum.csv").rename(forum.parent / "data" / "forum.csv")
    monkeypatch.setenv("GUARDKEEL_DATA", str(forum.parent / "data"))
    assert load_suite(f"{forum}@local").digest == load_suite(forum).digest
    card = find_card(forum)
    assert (present(card), card.where, card.is_local) == (["forum"], "data folder", True)


@pytest.mark.parametrize(
    ("copies", "says"),
    [
        ([{"name": "a"}, {"name": "a"}], "two copies are named 'a'"),
        ([{"reference": "x"}, {}], "two copies are named 'local'"),
        ([{"reference": "x", "parts": [{"reference": "y"}]}], "give either a reference or [[parts]]"),
        ([{"mapping": {"promt": "q"}}], "Extra inputs"),
        ([{"mapping": {"labels": {}}}], "Field required"),
        (
            [{"parts": [{"reference": "y", "mapping": {"prompt": ["q"], "messages": "m"}}]}],
            "give one of prompt",
        ),
        ([{"license": "MIT"}], "license: Extra inputs"),
        ([{"name": "a b"}], "String should match"),
    ],
)
def test_bad_copies_are_found_when_the_card_is_read(copies, says):
    suite = {"name": "a", "reference": "x"}
    mapping = {"prompt": "q", "labels": {"prompt": "safe"}}
    with pytest.raises(ConfigError) as e:
        parse_card({"suite": suite, "mapping": mapping, "copies": copies}, where="c.toml")
    assert e.value.problem.startswith("c.toml: ")
    assert says in e.value.problem


def test_cards_say_where_their_files_come_from():
    assert find_card("wildguardtest").where == "hub, gated"
    assert find_card("wildguardtest@polyguard").where == "hub"
    assert find_card("advbench").where == "pip"
    assert find_card("keel-domain").where == "file"
    assert find_card("keel-domain").sides == []
    assert find_card("wildguardtest").sides == ["prompt", "response"]
    assert find_card("wildguardtest@local").sides == ["prompt"]
    assert Path(find_card("keel-domain").folder).name == "cards"
