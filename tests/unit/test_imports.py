import json
import math
import shutil
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkeel.conversation import text_digest
from guardkeel.errors import ConfigError, DataError, GuardkeelError, UnsafeFileError
from guardkeel.evaluation.imports import Reading, read_all, read_results, zips

FIXTURES = Path(__file__).parents[1] / "fixtures" / "imports"
LM = "2026-11-22T00-46-32.483388"
CHOICE, TEXT = (FIXTURES / "lm-eval" / f"samples_tiny_guard_{kind}_{LM}.jsonl" for kind in ("choice", "text"))
GOLD = {"a1": "safe", "a2": "unsafe", "a3": "safe", "a4": "unsafe"}


@pytest.fixture
def copied(tmp_path):
    """copied(name): a fixture that may be changed."""

    def copy(name):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        source = FIXTURES / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        return target

    return copy


def scores(found):
    return [None if r.score is None else round(r.score, 4) for r in found.rows]


def labels(found):
    return {r.id: r.label for r in found.rows}


@pytest.mark.parametrize("where", ["geh", "geh/datasets/tiny/predictions.jsonl", "geh/datasets"])
def test_geh(where):
    found = read_results(FIXTURES / where)
    assert (found.name, found.tool, found.suite) == ("keyword-mock", "geh", "tiny")
    assert scores(found) == [0.2, 0.8, 0.8, 0.2]
    assert set(labels(found).values()) == {None} and "no gold labels" in found.notes[0]
    assert labels(read_results(FIXTURES / where, Reading(labels=GOLD))) == GOLD


def test_geh_samples_that_were_dropped_are_unscored(copied):
    run = copied("geh")
    manifest = run / "datasets" / "tiny" / "dataset-manifest.json"
    about = json.loads(manifest.read_text())
    about["metadata"] |= {"dropped_sample_ids": ["a5"], "dropped_sample_count": 30}
    manifest.write_text(json.dumps(about))
    found = read_results(run, Reading(labels=GOLD | {"a5": "unsafe"}))
    assert found.rows[-1].score is None and "dropped" in found.rows[-1].unscored
    assert any("29 more" in note for note in found.notes)


def test_geh_without_predictions_has_figures_only(copied):
    run = copied("geh")
    (run / "datasets" / "tiny" / "predictions.jsonl").unlink()
    found = read_results(run)
    assert not found.rows and "f1 0.5" in found.notes[0] and "cannot be paired" in found.notes[0]


def test_geh_threshold_and_side(copied):
    run = copied("geh")
    config = json.loads((run / "resolved-config.json").read_text())
    config["datasets"][0]["response_field"] = "reply"
    (run / "resolved-config.json").write_text(json.dumps(config))
    predictions = run / "datasets" / "tiny" / "predictions.jsonl"
    predictions.write_text(predictions.read_text().replace('"threshold": 0.5', '"threshold": 0.3'))
    found = read_results(run)
    assert {r.side for r in found.rows} == {"response"} and "its own threshold is 0.3" in found.notes
    assert {r.side for r in read_results(run, Reading(side="trajectory")).rows} == {"trajectory"}


@pytest.mark.parametrize("name", ["tiny-guard.eval", "tiny-guard.json"])
def test_inspect(name):
    path = FIXTURES / "inspect" / name
    found = read_results(path)  # the scorer that is called p_unsafe
    assert (found.name, found.tool, found.suite) == ("mockllm/model", "inspect_ai", "tiny")
    assert scores(found) == [0.125, 0.875, 0.875, None] and labels(found) == GOLD
    right = read_results(path, Reading(scorer="match"))
    assert scores(right) == [0.0, 1.0, 1.0, None]  # the wrong answer to a4 is a refusal, no verdict
    assert "no verdict" in right.rows[3].unscored and "no probabilities" in right.notes[0]
    digests = [r.id for r in read_results(path, Reading(key="text")).rows]
    assert digests[0] == text_digest("How do I bake bread at home?")
    with pytest.raises(DataError, match="has the scorers match, p_unsafe, not 'x'") as error:
        read_results(path, Reading(scorer="x"))
    assert "scorer = 'match'" in error.value.remedy


def log(*samples, **extra):
    about = {"task": "guards", "model": "m/guard", "dataset": {"name": "set"}}
    return {"version": 2, "status": "success", "eval": about, "samples": list(samples), **extra}


def sample(value, *, target="unsafe", answer=None, id="a", said="", **extra):
    score = {"value": value} | ({} if answer is None else {"answer": answer})
    return {
        "id": id, "epoch": 1, "input": "Hello.", "target": target, "scores": {"s": score},
        "output": {"completion": said}, **extra,
    }  # fmt: skip


@pytest.fixture
def logged(tmp_path):
    def write(found):
        path = tmp_path / "log.json"
        path.write_text(json.dumps(found))
        return path

    return write


@pytest.mark.parametrize(
    ("value", "target", "answer", "score"),
    [
        ("C", "unsafe", None, 1.0),
        ("C", "safe", "safe", 0.0),
        ("C", "safe", "unsafe", 1.0),  # includes() calls "unsafe" right where "safe" was asked for
        ("C", "safe", "This is unsafe.", None),
        ("C", "safe", "no harm in it", 0.0),
        ("I", "unsafe", "Safe.", 0.0),
        ("I", "unsafe", "gibberish", None),
        ("I", "unsafe", None, None),
        ("I", "safe", "unsafe", 1.0),
        ("P", "unsafe", "unsafe", None),
        ("N", "unsafe", "unsafe", None),
        (True, "unsafe", None, 1.0),
        (False, "unsafe", "safe", 0.0),
        ("unsafe", "safe", None, 1.0),
        ("maybe", "safe", None, None),
    ],
)
def test_inspect_values(logged, value, target, answer, score):
    found = read_results(logged(log(sample(value, target=target, answer=answer))))
    assert found.rows[0].score == score and found.rows[0].label == target
    assert bool(found.rows[0].unscored) == (score is None)


def test_inspect_numbers_are_not_guessed(logged):
    path = logged(log(sample(0.25), sample(float("nan"), id="b")))
    with pytest.raises(DataError, match="what they mean is not said") as error:
        read_results(path)
    assert "numbers = 'unsafe'" in error.value.remedy
    assert [r.score for r in read_results(path, Reading(numbers="unsafe")).rows] == [0.25, None]
    assert [r.score for r in read_results(path, Reading(numbers="safe")).rows] == [0.75, None]
    exact = logged(log(sample(1), sample(0.0, id="b", said="safe"), sample(0.5, id="c")))
    assert [r.score for r in read_results(exact, Reading(numbers="correct")).rows] == [1.0, 0.0, None]
    with pytest.raises(DataError, match=r"scores\.s\.value.* from 0 to 1, not 7"):
        read_results(logged(log(sample(7))), Reading(numbers="unsafe"))


def test_inspect_values_with_keys(logged):
    path = logged(log(sample({"unsafe": 0.75, "refused": 1.0})))
    assert read_results(path).rows[0].score == 0.75
    assert read_results(path, Reading(scorer="s.refused", numbers="safe")).rows[0].score == 0.0
    with pytest.raises(DataError, match=r"gives helpful, kind"):
        read_results(logged(log(sample({"helpful": 1, "kind": 0}))))


def test_inspect_failures_epochs_and_unfinished_runs(logged):
    failed = {k: v for k, v in sample("C", id="b", error={"message": "x"}).items() if k != "scores"}
    again = sample("I", answer="safe") | {"epoch": 2}
    found = read_results(logged(log(sample("C"), failed, again, status="error")))
    assert [r.score for r in found.rows] == [1.0, None]
    assert found.notes[0] == "the run's status is 'error': samples may be missing"
    assert "1 samples of later epochs are left out" in found.notes
    empty = read_results(
        logged(log(results={"scores": [{"name": "s", "metrics": {"accuracy": {"value": 0.5}}}]}))
    )
    assert not empty.rows and "s accuracy 0.5" in empty.notes[0]


def test_inspect_words_sides_and_counted_ids(logged):
    found = [
        sample("C", target="yes", id=k, metadata={"side": side}) | {"input": f"Text {k}."}
        for k, side in ((1, "response"), (2, "nonsense"))
    ]
    with pytest.raises(DataError, match="target 'yes' is neither safe nor unsafe"):
        read_results(logged(log(*found)))
    read = read_results(logged(log(*found)), Reading(unsafe=("yes",), safe=("no",)))
    assert [(r.id, r.side) for r in read.rows] == [
        (text_digest("Text 1."), "response"),
        (text_digest("Text 2."), "prompt"),
    ]
    same = [s | {"input": [{"role": "user", "content": "Same."}]} for s in found]
    read = read_results(logged(log(*same)), Reading(unsafe=("yes",), safe=("no",)))
    assert [r.id for r in read.rows] == ["1", "2"]  # texts do not tell them apart


def test_a_killed_inspect_run_has_the_samples_it_finished(tmp_path):
    path = tmp_path / "killed.eval"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("_journal/start.json", json.dumps({"version": 2, "eval": log()["eval"]}))
        archive.writestr("samples/a_epoch_1.json", json.dumps(sample("C")))
    found = read_results(path)
    assert [r.score for r in found.rows] == [1.0] and "'started'" in found.notes[0]


def hostile(path, name, data=b"{}"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps(log()))
        archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    "name", ["../evil.json", "/etc/evil.json", "samples/../../evil.json", "samples\\evil.json"]
)
def test_names_that_leave_their_folder_are_refused(tmp_path, name):
    with pytest.raises(UnsafeFileError, match="could leave its folder"):
        read_results(hostile(tmp_path / "x.eval", name))
    assert {p.name for p in tmp_path.rglob("*")} == {"x.eval"}


def test_bombs_are_refused(tmp_path, monkeypatch):
    path = hostile(tmp_path / "x.eval", "samples/a_epoch_1.json", b" " * 40_000_000)
    with pytest.raises(UnsafeFileError, match="unpacks from") as error:
        read_results(path)
    assert "bomb" in error.value.remedy
    monkeypatch.setattr(zips, "MAX_MEMBER", 3000)
    with pytest.raises(UnsafeFileError, match="unpacks from"):
        read_results(FIXTURES / "inspect" / "tiny-guard.eval")
    monkeypatch.setattr(zips, "MAX_MEMBERS", 3)
    with pytest.raises(UnsafeFileError, match="12 members; the limit is 3"):
        read_results(FIXTURES / "inspect" / "tiny-guard.eval")


def test_zstandard_bombs_are_refused(tmp_path, monkeypatch):
    """A member that says it is small and is not."""
    import pyarrow as pa

    packed = pa.compress(b" " * 30_000_000, codec="zstd", asbytes=True)
    path = tmp_path / "x.eval"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("header.json", json.dumps(log()))
        archive.writestr("samples/a_epoch_1.json", packed)
    raw = bytearray(path.read_bytes())
    local, central = raw.rfind(b"PK\x03\x04"), raw.rfind(b"PK\x01\x02")
    raw[local + 8 : local + 10] = raw[central + 10 : central + 12] = (zips.ZSTANDARD).to_bytes(2, "little")
    path.write_bytes(raw)
    with pytest.raises(UnsafeFileError, match="unpacks from"):
        read_results(path)


@pytest.mark.parametrize("keep", [0.05, 0.3, 0.6, 0.95])
def test_archives_that_are_cut_or_damaged(copied, keep):
    path = copied("inspect/tiny-guard.eval")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(DataError, match=r"zip archive|damaged"):
        read_results(path)
    at = int(len(whole) * keep)
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
    try:
        assert read_results(path).rows
    except GuardkeelError as e:
        assert "tiny-guard.eval" in e.problem


def test_lm_eval_choices_are_probabilities():
    found = read_results(CHOICE)
    assert (found.name, found.tool, found.suite) == ("table", "lm-eval", "tiny_guard_choice")
    assert scores(found) == [round(1 / (1 + math.exp(-x)), 4) for x in (-2.5, 1.5, 0.5, -0.25)]
    assert labels(found) == GOLD and not found.notes


def test_lm_eval_generated_words():
    found = read_results(TEXT)
    assert scores(found) == [0.0, 1.0, 1.0, None] and labels(found) == GOLD
    assert "no verdict" in found.rows[3].unscored and "scores are 0 and 1" in found.notes[0]


def test_lm_eval_folders_hold_several():
    with pytest.raises(ConfigError, match="holds 2 results: tiny_guard_choice, tiny_guard_text") as error:
        read_results(FIXTURES / "lm-eval")
    assert "part = " in error.value.remedy
    for path in (FIXTURES / "lm-eval", FIXTURES / "lm-eval" / f"results_{LM}.json"):
        assert read_results(path, Reading(part="tiny_guard_text")).rows == read_results(TEXT).rows
        assert len(read_all(path)) == 2
    with pytest.raises(ConfigError, match="no part 'x'"):
        read_results(FIXTURES / "lm-eval", Reading(part="x"))


def test_lm_eval_without_samples_has_figures_only(copied):
    folder = copied("lm-eval")
    next(folder.glob("samples_*text*")).unlink()
    found = read_results(folder, Reading(part="tiny_guard_text"))
    assert not found.rows and "exact_match,none 0.25" in found.notes[0] and "--log_samples" in found.notes[0]


def lines(path, change):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(change(row)) + "\n" for row in rows))
    return path


def test_lm_eval_filters_words_and_infinite_numbers(copied):
    path = copied(f"lm-eval/{CHOICE.name}")
    twice = path.read_text() + path.read_text().replace('"filter": "none"', '"filter": "strict"')
    path.write_text(twice)
    with pytest.raises(DataError, match="has the filters none, strict"):
        read_results(path)
    assert len(read_results(path, Reading(scorer="strict")).rows) == 4

    path = copied(f"lm-eval/{CHOICE.name}")
    path.write_text(path.read_text().replace('" unsafe"', '" yes"').replace('" safe"', '" no"'))
    with pytest.raises(DataError, match="do not say which is unsafe"):
        read_results(path)
    read = read_results(path, Reading(unsafe=("yes",), safe=("no",)))
    assert [r.score for r in read.rows] == [r.score for r in read_results(CHOICE).rows]

    path = copied(f"lm-eval/{CHOICE.name}")
    lines(path, lambda row: row | {"filtered_resps": [["-inf", "False"], ["nan", "False"]]})
    assert {r.score for r in read_results(path).rows} == {None}
    lines(path, lambda row: row | {"target": "5"})
    with pytest.raises(DataError, match="target 5 of 2 choices"):
        read_results(path)


def test_lm_eval_rows_without_ids_are_known_by_their_text(copied):
    path = copied(f"lm-eval/{TEXT.name}")
    lines(path, lambda row: row | {"doc": {"text": row["doc"]["text"]}})
    assert read_results(path).rows[0].id == text_digest("How do I bake bread at home?")
    lines(path, lambda row: row | {"doc": {"other": 1}})
    assert [r.id for r in read_results(path).rows] == ["0", "1", "2", "3"]
    with pytest.raises(DataError, match="no text"):
        read_results(path, Reading(key="text"))


def test_guardbench(copied):
    path = copied("guardbench/tiny/some-guard.json")
    found = read_results(path.parents[1], Reading(labels=GOLD))
    assert (found.name, found.tool, found.suite) == ("some-guard", "guardbench", "tiny")
    assert scores(found) == [0.03, 0.91, 0.5, 0.47] and labels(found) == GOLD
    assert "above 0.5" in found.notes[0]
    path.write_text('{"a1": false, "a2": true, "a3": null}')
    found = read_results(path)
    assert scores(found) == [0.0, 1.0, None]
    path.write_text('{"a1": 1.5}')
    with pytest.raises(
        DataError, match=r"some-guard\.json: field 'a1' must be a number from 0 to 1, not 1\.5"
    ):
        read_results(path)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"sample_id": "a", "unsafe_score": "high"}', r"a\.jsonl:1: field 'unsafe_score'"),
        ("a.jsonl", '{"sample_id": 3, "unsafe_score": 1}', r"a\.jsonl:1: field 'sample_id' is 3"),
        ("a.jsonl", '{"sample_id": "a", "unsafe_score": 1}\n{', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", '{"sample_id": "a", "unsafe_score": 1}\n[]', r"a\.jsonl:2: must be a JSON object"),
        (
            "a.jsonl",
            '{"doc_id": 0, "filtered_resps": 1, "doc": {}, "target": "safe"}',
            r"field 'filtered_resps' is 1",
        ),
        ("a.jsonl", '{"doc_id": 0, "filtered_resps": [], "target": "safe"}', r"field 'doc' is missing"),
        ("a.json", '{"f1": 0.5, "n": 3}', "no results that are known"),
        ("a.json", "[1, 2]", "no results that are known"),
        ("a.json", "{", r"a\.json: not JSON"),
        ("a.json", "[" * 100_000, r"a\.json: not JSON"),
        ("a.json", "", "is empty"),
        ("a.eval", "PK\x03\x04 and no more", "not a whole zip archive"),
        ("a.txt", "hello", "not JSON"),
    ],
)
def test_bad_files_name_file_field_and_remedy(tmp_path, name, text, said):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=said) as error:
        read_results(path)
    assert error.value.remedy


def test_folders_and_files_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_results(tmp_path / "absent.json")
    with pytest.raises(DataError, match="holds no results that are known"):
        read_results(tmp_path)


KINDS = (
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | st.text(max_size=4) | st.just([]) | st.just({})
    | st.sampled_from([[1], {"a": 1}, [[]], "C", "unsafe", "9" * 5000])
)  # fmt: skip
DOCUMENTS = {
    "log.json": log(sample("C"), sample({"unsafe": 0.5}, id="b")),
    "results.json": json.loads((FIXTURES / "lm-eval" / f"results_{LM}.json").read_text()),
    "choice.jsonl": json.loads(CHOICE.read_text().splitlines()[0]),
    "text.jsonl": json.loads(TEXT.read_text().splitlines()[0]),
    "predictions.jsonl": json.loads(
        (FIXTURES / "geh/datasets/tiny/predictions.jsonl").read_text().splitlines()[0]
    ),
}


def places(value, at=()):
    yield at
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*at, key))


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_any_value_in_any_place_is_read_or_refused(name, tmp_path_factory, data):
    found = json.loads(json.dumps(DOCUMENTS[name]))
    at = data.draw(st.sampled_from([p for p in places(found) if p]))
    inside = found
    for key in at[:-1]:
        inside = inside[key]
    if data.draw(st.booleans()):
        inside[at[-1]] = data.draw(KINDS)
    else:
        del inside[at[-1]]
    path = tmp_path_factory.getbasetemp() / name
    path.write_text(json.dumps(found))
    try:
        read = read_all(path)
    except GuardkeelError as e:
        assert e.remedy
        return
    for row in (row for scores in read for row in scores.rows):
        assert (row.score is None) == bool(row.unscored)
