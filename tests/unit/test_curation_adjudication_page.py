"""The page over HTTP: who comes in, what a form may do, and what never leaves before a decision."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("fastapi", reason="the serve extra is not installed")
pytest.importorskip("sqlalchemy", reason="the serve extra is not installed")

from fastapi.testclient import TestClient

from adjudication_parts import items, judged, queue_of, store_of
from guardkeel.curation.adjudication.access import Annotators, secret_of
from guardkeel.curation.adjudication.app import make_app
from guardkeel.curation.adjudication.desk import Desk
from guardkeel.curation.adjudication.guidelines import categories
from guardkeel.curation.config import AdjudicateConfig
from guardkeel.errors import ConfigError

OWN = {"sec-fetch-site": "same-origin"}


def desk_of(tmp_path, count=3, names=("ann", "bob"), people=1, **table):
    store = store_of(tmp_path / "adjudication.sqlite", count, people)
    config = AdjudicateConfig(people=people, **table)
    return Desk(store, config, "strict", Annotators(names, b"s" * 32), categories())


def client_of(desk, name="ann"):
    client = TestClient(make_app(desk), base_url="http://localhost:8765")
    if name:
        assert client.get(f"/enter?key={desk.annotators.keys()[name]}").status_code == 200
    return client


def form_of(page):
    """The hidden fields of the form."""
    return {n: re.search(rf'name="{n}" value="([^"]+)"', page)[1] for n in ("token", "item")}


def test_nobody_comes_in_without_a_key_and_everybody_under_a_name(tmp_path):
    desk = desk_of(tmp_path)
    stranger = client_of(desk, None)
    assert stranger.get("/", follow_redirects=False).headers["location"] == "login"
    assert stranger.get("/decisions.jsonl", follow_redirects=False).status_code == 303
    for path in ("/decide", "/undo", "/keep"):
        assert stranger.post(path, headers=OWN).status_code == 401
    wrong = stranger.get("/enter?key=wrong")
    assert wrong.status_code == 403 and "nobody" in wrong.text
    ann = client_of(desk)
    (cookie,) = ann.cookies.jar
    assert cookie.has_nonstandard_attr("HttpOnly") and cookie.get_nonstandard_attr("SameSite") == "lax"
    fields = form_of(ann.get("/").text)
    ann.post("/decide", data={**fields, "choice": "unsafe", "category": ["Threat", "no such"]}, headers=OWN)
    (record,) = desk.store.records()
    assert (record["annotator"], record["choice"], record["categories"]) == ("ann", "unsafe", ["Threat"])
    ann.post("/logout", headers=OWN)
    assert ann.get("/", follow_redirects=False).status_code == 303


def test_a_form_of_another_site_is_refused(tmp_path):
    desk = desk_of(tmp_path)
    client = client_of(desk)
    fields = {**form_of(client.get("/").text), "choice": "safe"}
    for headers in (
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {},
    ):
        assert client.post("/decide", data=fields, headers=headers).status_code == 403
    assert desk.store.records() == []
    assert client.post("/decide", data=fields, headers={"origin": "http://localhost:8765"}).status_code == 200
    assert len(desk.store.records()) == 1


def test_votes_and_reasons_are_nowhere_before_a_decision(tmp_path):
    desk = desk_of(tmp_path)
    client = client_of(desk)
    page = client.get("/").text
    for word in ("jurors disagree", "P(unsafe)", "majority", "drawn for audit", "0.90"):
        assert word not in page
    after = client.post("/decide", data={**form_of(page), "choice": "safe"}, headers=OWN).text
    for word in ("jurors disagree: unsafe a, c; safe b", "P(unsafe) 0.90", "majority", "you said"):
        assert word in after
    assert desk.store.records()[0]["blind"] is True


def test_votes_are_shown_before_where_that_was_asked_for_and_the_label_says_so(tmp_path):
    desk = desk_of(tmp_path, show_votes=True)
    client = client_of(desk)
    page = client.get("/").text
    assert "jurors disagree: unsafe a, c; safe b" in page
    client.post("/decide", data={**form_of(page), "choice": "safe"}, headers=OWN)
    assert desk.store.records()[0]["blind"] is False


def test_audited_items_look_like_the_others(tmp_path):
    desk = desk_of(tmp_path, 1)
    rows = [judged("same", 0.9, 0.9, 0.9), judged("diff", 0.9, 0.1, 0.9)]
    pages = {}
    for found in queue_of(rows, audit=1.0).items:
        desk.store.load([found], 1, "strict")
        pages[found.audit] = client_of(desk).get("/").text
    strip = r"[0-9a-f]{40}|[A-Za-z0-9_-]{24}|text of \w+"
    assert re.sub(strip, "", pages[True]) == re.sub(strip, "", pages[False])


def test_a_decision_sent_twice_counts_once_and_undo_takes_it_back(tmp_path):
    desk = desk_of(tmp_path)
    client = client_of(desk)
    fields = {**form_of(client.get("/").text), "choice": "unsafe", "note": " why "}
    client.post("/decide", data=fields, headers=OWN)
    again = client.post("/decide", data=fields, headers=OWN)
    assert "counts once" in again.text and len(desk.store.records()) == 1
    other = client.post("/decide", data={**fields, "choice": "safe"}, headers=OWN)
    assert "something else" in other.text and desk.store.records()[0]["note"] == "why"
    undone = client.post("/undo", data={"id": fields["token"]}, headers=OWN)
    assert "Taken back" in undone.text and form_of(undone.text)["item"] == fields["item"]
    skipped = client.post("/decide", data={**form_of(undone.text), "choice": "skip"}, headers=OWN)
    assert "Skipped" in skipped.text and [r["kind"] for r in desk.store.records()] == [
        "label",
        "undo",
        "skip",
    ]


def test_bad_forms_are_refused(tmp_path):
    desk = desk_of(tmp_path)
    client = client_of(desk)
    fields = form_of(client.get("/").text)
    for data in (
        {**fields, "choice": "maybe"},
        {"choice": "safe"},
        {**fields, "token": "a b", "choice": "safe"},
    ):
        assert client.post("/decide", data=data, headers=OWN).status_code == 400
    assert client.post("/decide", content=b"x" * 70_000, headers=OWN).status_code == 413
    assert client.post("/decide", content=b"\xff=1", headers=OWN).status_code == 400
    assert desk.store.records() == []


def test_keeping_an_item_tells_how_far_everybody_is_and_when_it_is_lost(tmp_path):
    desk = desk_of(tmp_path, 1)
    ann, bob = client_of(desk), client_of(desk, "bob")
    token = form_of(ann.get("/").text)["token"]
    assert "Nothing for you" in bob.get("/").text
    kept = ann.post("/keep", data={"token": token}, headers=OWN).json()
    assert kept["stale"] is False and "of 1 decided" in kept["progress"]
    assert bob.post("/keep", data={"token": ""}, headers=OWN).json()["stale"] is False
    ann.post("/decide", data={**form_of(ann.get("/").text), "choice": "skip"}, headers=OWN)
    assert ann.post("/keep", data={"token": token}, headers=OWN).json()["stale"] is True


def test_two_people_work_through_a_queue_alone(tmp_path):
    desk = desk_of(tmp_path, 4, people=2)
    pages = {name: client_of(desk, name) for name in ("ann", "bob")}
    while True:
        left = 0
        for client in pages.values():
            page = client.get("/").text
            if 'name="token"' in page:
                client.post("/decide", data={**form_of(page), "choice": "safe"}, headers=OWN)
                left += 1
        if not left:
            break
    assert desk.store.progress("ann", 0).decided == 4 and len(desk.store.records()) == 8
    assert "All is decided" in pages["ann"].get("/").text
    lines = pages["ann"].get("/decisions.jsonl").text.splitlines()
    assert len(lines) == 8 and {json.loads(line)["annotator"] for line in lines} == {"ann", "bob"}


def test_what_is_shown_is_escaped_and_the_page_may_run_nothing_else(tmp_path):
    desk = desk_of(tmp_path)
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)> \u202e \ud800 \" ' &amp;"
    (one,) = queue_of([judged("<b>r\udce9</b>", 0.9, 0.1, 0.9, prompt=hostile)]).items
    desk.store.load([one], 1, "strict")
    client = client_of(desk)
    answer = client.get("/")
    assert "<script>alert" not in answer.text and "<img" not in answer.text
    assert (
        "&lt;script&gt;alert(1)&lt;/script&gt;" in answer.text
        and "U+202E" in answer.text
        and "U+D800" in answer.text
    )
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"
    fields = form_of(answer.text)
    after = client.post(
        "/decide", data={**fields, "choice": "safe", "note": hostile.replace("\ud800", "")}, headers=OWN
    )
    assert "<script>alert" not in after.text and "&lt;script&gt;" in after.text
    assert client.get("/?said=<script>").text.count("<script") == 1  # the page's own


def test_a_store_that_is_gone_is_said(tmp_path):
    desk = desk_of(tmp_path)
    client = client_of(desk)
    with desk.store._writer.begin() as connection:
        connection.exec_driver_sql("DROP TABLE leases")
    answer = client.get("/")
    assert answer.status_code == 503 and "cannot be used" in answer.text


def test_links_stay_over_a_restart_and_end_with_their_secret(tmp_path):
    path = tmp_path / "x.key"
    first = Annotators(["ann", "bob"], secret_of(path))
    assert path.stat().st_mode & 0o777 == 0o600
    assert Annotators(["ann"], secret_of(path)).keys()["ann"] == first.keys()["ann"]
    assert first.keys()["ann"] != first.keys()["bob"] and first.find(first.keys()["bob"]) == "bob"
    path.unlink()
    assert Annotators(["ann"], secret_of(path)).find(first.keys()["ann"]) is None
    path.write_bytes(b"short")
    with pytest.raises(ConfigError, match="no secret"):
        secret_of(path)


def test_items_have_a_side_and_the_judged_message_is_marked(tmp_path):
    from curation_rows import row
    from guardkeel.curation.adjudication.desk import turns_of

    rows = [row("r", "the question", "the reply")]
    found = {i.side: turns_of({"messages": i.messages, "side": i.side}) for i in queue_of(rows).items}
    assert [(t.role, t.judged) for t in found["prompt"]] == [("user", True)]
    assert [(t.role, t.judged) for t in found["response"]] == [("user", False), ("assistant", True)]
    assert len(items(2)) == 2
