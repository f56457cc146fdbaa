"""Sources: what is read, what is left out and counted, and what is said when it cannot be read."""

from __future__ import annotations

import gzip
import json
from collections import Counter

import pytest
from pydantic import ValidationError

from curation_rows import AEGIS_2, RECORDS, jsonl, row
from guardkeel.conversation import Example, write_jsonl
from guardkeel.curation.config import SourceConfig
from guardkeel.curation.formats import FORMATS
from guardkeel.curation.readers import Rejected, read_source
from guardkeel.curation.rows import Row
from guardkeel.curation.writers import flat, schema, write_released, write_set
from guardkeel.errors import ConfigError, DataError
from trained_guards import suite_file


def read(counts=None, **table):
    """All that a source gives."""
    return list(read_source(SourceConfig(name="s", **table), counts=counts))


def test_rows_know_where_they_are_from(tmp_path):
    path = jsonl(tmp_path / "train.jsonl", RECORDS["aegis-2"])
    first = read(data=str(path), licence="mine", label_source="team", split="test")[0]
    assert (first.id, first.group, first.source, first.origin) == ("s/a1", "s/a1", "s", "train.jsonl:1")
    assert (first.licence, first.language, first.split) == ("mine", "en", "test")
    assert {g.source for g in first.labels.values()} == {"team"}
    assert read(data=str(path))[0].licence == "CC BY 4.0"


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "parquet"])
@pytest.mark.parametrize("name", [n for n in RECORDS if n != "messages"])
def test_every_format_in_every_kind_of_file(tmp_path, name, ending):
    rows = read(data=str(jsonl(tmp_path / "in.jsonl", RECORDS[name])), format=name)
    path = tmp_path / f"out.{ending}"
    assert write_released(path, rows, name) == len(rows)
    again = read(data=str(path), format=name)
    for one, two in zip(rows, again, strict=True):
        assert one.labels == two.labels and one.categories == two.categories
        assert one.conversation.text == two.conversation.text


def test_several_files_packed_and_starred(tmp_path):
    for n in (1, 2):
        with gzip.open(tmp_path / f"part{n}.jsonl.gz", "wt") as f:
            f.write(json.dumps({"messages": [{"role": "user", "content": f"hello {n}"}]}) + "\n")
    assert [r.id for r in read(data=str(tmp_path / "*.jsonl.gz"))] == ["s/part1-1", "s/part2-1"]
    with pytest.raises(DataError, match="no file is named"):
        read(data=str(tmp_path / "*.csv"))
    with pytest.raises(DataError, match="is a folder"):
        read(data=str(tmp_path))


def test_mixed_encodings_line_by_line(tmp_path):
    path = tmp_path / "logs.jsonl"
    lines = [
        json.dumps({"messages": [{"role": "user", "content": t}]}, ensure_ascii=False)
        for t in ("Grüße", "naïve")
    ]
    path.write_bytes(lines[0].encode() + b"\n" + lines[1].encode("cp1252") + b"\n\n")
    counts: Counter[str] = Counter()
    found = read(counts, data=str(path), encodings=["utf-8", "cp1252"])
    assert [r.conversation.text for r in found] == ["Grüße", "naïve"]
    assert counts["lines read as cp1252"] == 1
    with pytest.raises(DataError, match=r"logs\.jsonl:2: not utf-8"):
        read(data=str(path))
    kept, left = read(counts, data=str(path), on_error="reject")
    assert isinstance(kept, Row) and isinstance(left, Rejected) and left.where.endswith(":2")
    with pytest.raises(ConfigError, match="unknown encoding 'utf-88'"):
        read(data=str(path), encodings=["utf-88"])


def test_a_table_in_another_encoding(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes("id,prompt,type,label\n1,Grüße,t,safe\n".encode("cp1252"))
    assert read(data=str(path), encodings=["utf-8", "cp1252"])[0].conversation.text == "Grüße"
    with pytest.raises(DataError, match="not utf-8"):
        read(data=str(path))


def test_ids_that_repeat_stay_together(tmp_path):
    path = jsonl(tmp_path / "x.jsonl", [AEGIS_2, AEGIS_2, AEGIS_2 | {"prompt": "something else"}])
    counts: Counter[str] = Counter()
    found = read(counts, data=str(path))
    assert [r.id for r in found] == ["s/a1", "s/a1~2", "s/a1~3"]
    assert {r.group for r in found} == {"s/a1"}
    assert counts["ids that repeat"] == 1 and counts["ids that repeat, with another text"] == 1


def test_bad_records_stop_or_are_counted_without_their_text(tmp_path):
    path = tmp_path / "x.jsonl"
    good = json.dumps(AEGIS_2)
    path.write_text(f"{good}\nnot json\n[1]\n{json.dumps(AEGIS_2 | {'prompt_label': 'my secret'})}\n")
    with pytest.raises(DataError, match=r"x\.jsonl:2: not JSON"):
        read(data=str(path))
    counts: Counter[str] = Counter()
    found = read(counts, data=str(path), on_error="reject")
    assert [type(r).__name__ for r in found] == ["Row", "Rejected", "Rejected", "Rejected"]
    assert not any("my secret" in key for key in counts)
    assert sum(n for k, n in counts.items() if k.startswith("rejected")) == 3


def test_a_mapping_without_labels_reads_unknown_rows(tmp_path):
    path = jsonl(tmp_path / "x.jsonl", [{"q": "hello", "lang": "de"}, {"q": "bye", "lang": "en"}])
    mapping = {"prompt": "q", "language": "lang", "drop": [{"field": "lang", "values": ["en"]}]}
    counts: Counter[str] = Counter()
    found, left = read(counts, data=str(path), mapping=mapping)
    assert dict(found.labels) == {} and found.language == "de"
    assert isinstance(left, Rejected)
    rule = {"field": "lang", "values": {"de": "unsafe"}, "skip": ["en"]}
    labelled = mapping | {"labels": {"prompt": rule}, "drop": []}
    first, second = read(data=str(path), mapping=labelled, label_source="human", labels={"prompt": "safe"})
    assert first.labels["prompt"].label == "unsafe" and second.labels["prompt"].source == "human"
    with pytest.raises(ConfigError, match=r"mapping\.prompt"):
        read(data=str(path), mapping={"prompt": 3})
    with pytest.raises(DataError, match="field 'nix' is missing"):
        read(data=str(path), mapping={"prompt": "nix"})


def test_labels_of_a_whole_file(tmp_path):
    path = jsonl(tmp_path / "x.jsonl", RECORDS["jailbreakbench"])
    assert read(data=str(path), labels={"prompt": "unsafe"})[0].labels["prompt"].source == "author"


def test_suites_and_their_parts(tmp_path):
    path = suite_file(tmp_path / "mine.jsonl", 60)
    found = read(suite=str(path))
    assert len(found) == 60 and {g.source for r in found for g in r.labels.values()} == {"mine"}
    fit = read(suite=str(path), part="fit", label_source="human")
    assert 0 < len(fit) < 60
    assert len(read(suite=str(path), limit=7)) == 7


def test_hidden_prompts_are_put_back_from_their_own_source(tmp_path):
    hidden = AEGIS_2 | {"prompt": "REDACTED", "reconstruction_id_if_redacted": 17.0}
    path = jsonl(tmp_path / "x.jsonl", [AEGIS_2, hidden | {"id": "h"}])
    other = tmp_path / "theirs.csv"
    other.write_text(",text,class\n5,no,x\n17,the hidden prompt,x\n")
    shown, left = read(data=str(path))
    assert isinstance(left, Rejected) and left.id == "h"
    back = read(data=str(path), reconstruct={"file": str(other)})[1]
    assert back.conversation.turns[0].content == "the hidden prompt" and "not ours" in back.history[0]
    assert FORMATS["aegis-2"].record(back) == hidden | {"id": "h"}
    other.write_text(",text\n5,no\n")
    with pytest.raises(DataError, match="none of the 1 hidden prompts"):
        read(data=str(path), reconstruct={"file": str(other)})
    assert isinstance(shown, Row)


def test_rows_of_an_earlier_run_are_read_whole(tmp_path):
    given = row(
        "old/1",
        prompt_label="unsafe",
        source="aegis2",
        origin="a.json: row 1",
        absorbed=("x",),
        group="old/1",
    )
    found = read(data=str(jsonl(tmp_path / "rows.jsonl", [given.to_json()])))[0]
    assert (found.source, found.origin, found.absorbed) == ("aegis2", "a.json: row 1", ("x",))
    write_jsonl(
        tmp_path / "examples.jsonl", [Example("e", given.conversation, {"prompt": "safe"}, group="g")]
    )
    assert read(data=str(tmp_path / "examples.jsonl"), label_source="human")[0].group == "s/g"


def test_grouped_by_a_field(tmp_path):
    path = jsonl(tmp_path / "x.jsonl", [{"messages": [{"role": "user", "content": "a"}], "user": "u7"}])
    assert read(data=str(path), group="user")[0].group == "s/u7"


@pytest.mark.parametrize(
    "table",
    [{}, {"data": "x", "suite": "y"}, {"suite": "x", "format": "xstest"}, {"data": "x", "part": "fit"}],
)
def test_sources_that_say_too_little_or_too_much(table):
    with pytest.raises(ValidationError):
        SourceConfig(name="s", **table)


def test_a_finished_set_has_one_schema(tmp_path):
    import pyarrow.parquet

    rows = [
        row("a", "hi \ud800", "there", prompt_label="unsafe", group="g", redactions={"EMAIL": 1}),
        row("b"),
    ]
    assert write_set(tmp_path / "x.parquet", rows) == 2
    table = pyarrow.parquet.read_table(tmp_path / "x.parquet")
    assert table.schema.names == schema().names
    first, second = table.to_pylist()
    assert first["prompt_label"] == "unsafe" and first["response_label"] is None
    assert first["messages"][0]["content"] == "hi ?" and second["group"] == "b"
    assert flat(rows[1])["prompt_label"] is None
