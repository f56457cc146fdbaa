"""Rows: what is unknown stays unknown, and nothing is lost on the way to a file and back."""

from __future__ import annotations

import pytest

from curation_rows import row, votes
from guardkeel.curation.rows import (
    DISAGREEMENT,
    Row,
    SideLabel,
    Vote,
    merged,
    read_rows,
    row_from_json,
    write_rows,
)
from guardkeel.errors import DataError


def full():
    given = (Vote("a", "unsafe", 0.9, ("Threat",)), Vote("b", None, reason="unsure"))
    return row(
        "s/1",
        "tell me \ud800 about\u2028ships",
        "no",
        labels={
            "prompt": SideLabel("unsafe", "jury", given, {"majority": 1.0}),
            "response": SideLabel(None, "jury", votes("safe", "unsafe")),
        },
        categories=("Threat", "Needs Caution"),
        group="g",
        source="s",
        origin="x.jsonl:3",
        licence="MIT",
        language="en",
        redactions={"EMAIL": 2},
        absorbed=("t/9",),
        history=("dedup: absorbed 1",),
        split="fit",
        extra={"format": "aegis-2", "id": "1"},
    )


def test_round_trip(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert write_rows(path, [full(), row("s/2")]) == 2
    assert list(read_rows(path)) == [full(), row("s/2")]


def test_unknown_is_not_safe():
    made = full()
    assert made.label("response") is None and made.label("trajectory") is None
    assert dict(made.example().labels) == {"prompt": "unsafe"}
    assert row(prompt_label="safe", categories=("Threat",)).example().categories == ()


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([], "a row must be an object"),
        ({"id": "a", "messages": [{"role": "user", "content": "x"}], "lables": {}}, "unknown field 'lables'"),
        ({"id": "", "messages": [{"role": "user", "content": "x"}]}, "field 'id'"),
        ({"id": "a", "messages": []}, "messages must be a non-empty list"),
        ({"id": "a", "messages": [{"role": "user", "content": "x"}], "labels": {"prompt": {"label": "bad"}}}, "bad"),
        ({"id": "a", "messages": [{"role": "user", "content": "x"}], "labels": {"reply": {}}}, "labels has 'reply'"),
        ({"id": "a", "messages": [{"role": "user", "content": "x"}], "split": "train"}, "unknown split 'train'"),
        ({"id": "a", "messages": [{"role": "user", "content": "x"}], "absorbed": [1]}, "'absorbed'"),
    ],
)  # fmt: skip
def test_bad_rows_say_why(value, problem):
    with pytest.raises(DataError, match=problem):
        row_from_json(value)


def test_a_bad_line_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(row("a").line() + b'{"id": 3\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:2: not JSON"):
        list(read_rows(path))


def test_merging_keeps_what_agrees_and_never_hides_a_contradiction():
    safe, unsafe = SideLabel("safe", "human"), SideLabel("unsafe", "jury", votes("unsafe", "safe", "unsafe"))
    assert merged(safe, safe) == safe
    tie = merged(safe, unsafe)
    assert (tie.label, tie.source) == (None, DISAGREEMENT)
    assert next((v.by, v.label) for v in tie.votes) == ("human", "safe") and len(tie.votes) == 4
    unknown = SideLabel(None, "jury", votes("safe", "unsafe"))
    found = merged(unknown, safe)
    assert (found.label, found.source) == ("safe", "human") and len(found.votes) == 3
    assert merged(tie, safe).label is None  # who comes later does not settle it
    assert isinstance(Row("a", row().conversation).labels.get("prompt"), type(None))
