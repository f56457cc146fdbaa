"""guardkeel suites: the list, one card, one suite."""

import json
import sys

import pytest

from guardkeel.cli import main

CARD = """[suite]
name = "forum"
version = "7"
reference = "forum.csv"
licence = "CC0"
tier = "open"
checked = "read"
traps = ["loud [bold]words[/bold]"]

[mapping]
prompt = "question"
labels.prompt = "safe"

[[copies]]
reference = "data:half.csv"
note = "half of it"
"""


@pytest.fixture
def suites(monkeypatch, capsys):
    """suites(*words) → exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "240")
    monkeypatch.delenv("GUARDKEEL_DATA", raising=False)
    monkeypatch.setenv("GUARDKEEL_OFFLINE", "1")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["guardkeel", "suites", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


@pytest.fixture
def forum(tmp_path):
    (tmp_path / "forum.csv").write_text("question\nhow are you\nwell then\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "half.csv").write_text("question\nhow are you\n")
    (tmp_path / "forum.toml").write_text(CARD)
    return tmp_path / "forum.toml"


def test_the_list_says_what_one_needs_to_choose(suites, tmp_path):
    code, out, _ = suites()
    assert code == 0
    [line] = [x for x in out.splitlines() if x.startswith("toxicchat ")]
    for word in ("prompt", "362", "2491", "CC BY-NC 4.0", "documented", "hub"):
        assert word in line
    assert "(@local" not in out
    (tmp_path / "toxicchat").mkdir()
    (tmp_path / "toxicchat" / "toxic_chat_test.json.gz").touch()
    _, out, _ = suites("--data", tmp_path)
    assert "hub (@local)" in out and "hub (@local-full)" not in out


def test_the_list_as_json(suites):
    code, out, _ = suites("--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0 and len(rows) > 50
    row = rows["wildguardtest"]
    assert (row["sides"], row["checked"], row["tier"], row["where"]) == (
        ["prompt", "response"],
        "documented",
        "restricted",
        "hub, gated",
    )
    assert set(row["copies"]) == {"local", "polyguard"} and row["here"] == []
    assert row["home"].startswith("https://") and row["references"][0].startswith("hub:")


def test_a_card_is_shown_without_its_data(suites):
    code, out, _ = suites("aegis", "--card")
    assert code == 0
    for words in (
        "aegis@permissive: Needs Caution counts as safe",
        "traps ",
        "Needs Caution",
        "arXiv:2404.05993",
    ):
        assert words in out
    assert "digest" not in out
    code, out, _ = suites("aegis", "--card", "--json")
    assert code == 0 and json.loads(out)["unsafe"] == 233 and "digest" not in json.loads(out)


def test_traps_are_shown_even_where_the_data_cannot_be_had(suites):
    code, out, err = suites("toxicchat")
    assert code == 2
    assert "toxic is narrower than unsafe" in out
    assert "network is off" in err and "toxicchat@local" in err
    code, out, err = suites("dices-990")
    assert code == 2
    assert "Yes means unsafe" in out and "set GUARDKEEL_DATA" in err


def test_one_suite_and_its_copy(suites, forum):
    code, out, _ = suites(forum)
    assert code == 0
    for words in ("forum 7", "2 examples · 0 unsafe, 2 safe labels · all safe", "[bold]words[/bold]"):
        assert words in out
    assert "forum@local: half of it" in out and "(here)" not in out
    code, out, _ = suites(f"{forum}@local", "--data", forum.parent / "data")
    assert code == 0
    assert "forum@local 7@local" in out and "1 examples" in out and "half of it" in out
    _, plain, _ = suites(forum, "--json")
    _, other, _ = suites(f"{forum}@local", "--data", forum.parent / "data", "--json")
    first, second = json.loads(plain), json.loads(other)
    assert (first["read_from"], second["read_from"]) == ("", "local")
    assert first["digest"] != second["digest"]
    assert second["here"] == ["forum@local"]


def test_unknown_names_and_copies(suites):
    code, _, err = suites("toxicchatt")
    assert code == 2 and "did you mean toxicchat" in err
    code, _, err = suites("toxicchat@lokal")
    assert code == 2 and "toxicchat@local" in err
