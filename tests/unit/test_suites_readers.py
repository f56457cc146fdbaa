"""Readers: every format, and every way a file can be bad."""

import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from guardkeel.errors import DataError
from guardkeel.evaluation.suites.readers import format_of, plain_stem, read_rows


def put(folder, name, data):
    path = folder / name
    raw = data if isinstance(data, bytes) else data.encode()
    pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(raw))
    return path


def rows(path, **options):
    return [(r.where.removeprefix(str(path)), r.number, r.fields) for r in read_rows(path, **options)]


def problem(path, **options):
    with pytest.raises(DataError) as e:
        list(read_rows(path, **options))
    assert str(path) in e.value.problem
    return e.value


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_jsonl_ends_lines_at_newline_only(tmp_path, suffix):
    path = put(tmp_path, "a.jsonl" + suffix, '\ufeff{"t": "one\u2028two"}\n\n"bare"\r\n')
    assert rows(path) == [(":1", 1, {"t": "one\u2028two"}), (":3", 2, {"text": "bare"})]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_csv_names_the_line_where_a_record_starts(tmp_path, suffix):
    path = put(tmp_path, "a.csv" + suffix, '# made by us\n# twice\na,b\n1,"x\ny"\n\n2,z\n')
    assert rows(path, preamble="#") == [(":4", 1, {"a": "1", "b": "x\ny"}), (":7", 2, {"a": "2", "b": "z"})]


def test_tsv(tmp_path):
    assert rows(put(tmp_path, "a.tsv", "a\tb\n1,5\t2\n")) == [(":2", 1, {"a": "1,5", "b": "2"})]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_json_list_and_list_inside(tmp_path, suffix):
    assert rows(put(tmp_path, "a.json" + suffix, '["x", {"t": 1}]')) == [
        (": row 1", 1, {"text": "x"}),
        (": row 2", 2, {"t": 1}),
    ]
    inside = put(tmp_path, "b.json" + suffix, json.dumps({"data": {"items": [{"t": 2}]}}))
    assert rows(inside, rows="data.items") == [(": row 1", 1, {"t": 2})]


def test_yaml_under_another_ending(tmp_path):
    path = put(tmp_path, "a.prompt", "seeds:\n- value: v\n  kinds: [a, b]\n")
    assert rows(path, format="yaml", rows="seeds") == [(": row 1", 1, {"value": "v", "kinds": ["a", "b"]})]


def test_text_one_a_line(tmp_path):
    path = put(tmp_path, "a.txt", "# note\n one \n\n# two\n")
    assert rows(path, preamble="#") == [(":2", 1, {"text": "one"}), (":4", 2, {"text": "# two"})]


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"t": ["x", "y"], "n": [1, None]}), path)
    assert rows(path) == [(": row 1", 1, {"t": "x", "n": 1}), (": row 2", 2, {"t": "y", "n": None})]


def test_encoding(tmp_path):
    path = put(tmp_path, "a.csv", "a\nd\xe9j\xe0\n".encode("cp1252"))
    assert rows(path, encoding="cp1252") == [(":2", 1, {"a": "déjà"})]
    assert "not utf-8" in problem(path).problem
    assert "unknown encoding 'klingon'" in problem(path, encoding="klingon").problem


@pytest.mark.parametrize(
    ("name", "stem", "format"),
    [
        ("a.b.jsonl.gz", "a.b", "jsonl"),
        ("X.CSV", "X", "csv"),
        ("n.yml", "n", "yaml"),
        ("t.tsv.gz", "t", "tsv"),
    ],
)
def test_names(name, stem, format):
    assert format_of(Path(name)) == format
    assert plain_stem(Path(name)) == stem


@pytest.mark.parametrize("name", ["a.xlsx", "a", "a.gz", "a.xz", "a.gz.xz"])
def test_unknown_ending(name):
    with pytest.raises(DataError, match="no known format") as e:
        format_of(Path(name))
    assert "format = one of jsonl" in e.value.remedy
    assert plain_stem(Path("a")) == "a"


@pytest.mark.parametrize(
    ("name", "data", "where", "says"),
    [
        ("a.jsonl", '{"t": 1}\n{"t": \n', ":2", "not JSON"),
        ("a.jsonl", "[1]\n", ":1", "must be an object or a text, not list"),
        ("a.jsonl", b'{"t": 1}\n\xff\n', ":2", "not utf-8"),
        ("a.csv", "a,b\n1\n", ":2", "1 values under 2 column names"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", ":3", "3 values under 2"),
        ("a.csv", 'a\n1\n"open\n2\n', ":3", "not a CSV record"),
        ("a.csv", "a,a\n", ":1", "column name 'a' is there twice"),
        ("a.csv", ",\n", ":1", "no column names"),
        ("a.json", "[1, 2", "", "not JSON"),
        ("a.json", '{"data": []}', "", "must be a list, but it is an object with data"),
        ("a.json", "3", "", "must be a list, but it is no list"),
        ("a.json", "[3]", ": row 1", "must be an object or a text"),
        ("a.yaml", "a: [", "", "not YAML"),
        ("a.parquet", "PAR1 no", "", "not a readable Parquet"),
    ],
)
def test_bad_files_name_the_place(tmp_path, name, data, where, says):
    path = put(tmp_path, name, data)
    error = problem(path)
    assert error.problem.startswith(f"{path}{where}: ")
    assert says in error.problem
    assert error.remedy


def test_missing_key_on_the_way_to_the_rows(tmp_path):
    error = problem(put(tmp_path, "a.json", '{"d": {"x": []}}'), rows="d.items")
    assert "no key 'items'" in error.problem
    assert error.remedy == "there is: x"
    assert "there is: list" in problem(put(tmp_path, "b.json", "[]"), rows="d").remedy


@pytest.mark.parametrize(
    "cut", [lambda b: b[:-9], lambda b: b"nogzip", lambda b: b[:12] + b"\0\0\0" + b[15:]]
)
def test_damaged_gzip(tmp_path, cut):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(cut(gzip.compress(b'{"t": "some text of some length"}\n' * 40)))
    assert "gzip data is damaged" in problem(path).problem


@pytest.mark.parametrize("cut", [lambda b: b[:-20], lambda b: b"noxz", lambda b: b[:30] + b"\0\0\0" + b[33:]])
def test_damaged_xz(tmp_path, cut):
    path = tmp_path / "a.jsonl.xz"
    path.write_bytes(cut(lzma.compress(b'{"t": "some text of some length"}\n' * 40)))
    assert "xz data is damaged" in problem(path).problem


def test_keys_on_the_way_become_fields(tmp_path):
    path = put(
        tmp_path, "a.json", '{"d": {"cats": {"big": ["x", {"t": 1}], "small": []}, "dogs": {"any": ["y"]}}}'
    )
    assert [f for _, _, f in rows(path, rows="d.{topic}.{kind}")] == [
        {"text": "x", "topic": "cats", "kind": "big"},
        {"t": 1, "topic": "cats", "kind": "big"},
        {"text": "y", "topic": "dogs", "kind": "any"},
    ]
    assert [
        (n, f) for _, n, f in rows(put(tmp_path, "b.json", '{"7": {"t": 1}, "8": "z"}'), rows="{id}")
    ] == [
        (1, {"t": 1, "id": "7"}),
        (2, {"text": "z", "id": "8"}),
    ]


@pytest.mark.parametrize(
    ("data", "path", "says"),
    [
        ('["x"]', "{topic}", "no object '{topic}' there"),
        ('{"a": {"b": ["x"]}}', "{topic}.c", "no key 'c' there"),
        ('{"a": 3}', "{topic}", "must be a list, but it is no list"),
        ('{"a": [{"topic": 1}]}', "{topic}", "a field 'topic' of its own"),
        ('{"a": [3]}', "{topic}", "must be an object or a text"),
    ],
)
def test_keys_that_are_not_there(tmp_path, data, path, says):
    error = problem(put(tmp_path, "a.json", data), rows=path)
    assert says in error.problem
    assert error.remedy


def test_a_number_of_thousands_of_digits_is_an_error(tmp_path):
    assert "not JSON" in problem(put(tmp_path, "a.json", "[" + "1" * 5000 + "]")).problem
    assert "not JSON" in problem(put(tmp_path, "a.jsonl", "1" * 5000)).problem


def test_missing_file(tmp_path):
    assert "cannot be read" in problem(tmp_path / "no.jsonl").problem


def test_deep_json_is_an_error_and_not_a_crash(tmp_path):
    assert "not JSON" in problem(put(tmp_path, "a.jsonl", "[" * 200_000)).problem


def test_long_csv_field(tmp_path):
    assert len(rows(put(tmp_path, "a.csv", "a\n" + "x" * 300_000 + "\n"))[0][2]["a"]) == 300_000
