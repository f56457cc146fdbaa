"""The dossier as a service: pages are read-only, approvals pass the same rules."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("sqlalchemy", reason="the dossier extra is not installed")
pytest.importorskip("cryptography", reason="the dossier extra is not installed")
pytest.importorskip("fastapi", reason="the dossier extra is not installed")

from fastapi.testclient import TestClient

from dossier_cases import Clock, lived
from guardkeel.dossier.chain import first_fault, from_line
from guardkeel.dossier.gate import decide
from guardkeel.dossier.kinds import Approval
from guardkeel.report.dossier_app import app

TOKEN = "a-token-of-this-test"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    clock = Clock()
    dossier, guard = lived(folder / "d", folder / "run", clock)
    clock.later(hours=1)
    decision = decide(dossier.state, guard, "release", clock())
    dossier.record([decision], "ada")
    yield dossier, decision, TestClient(app(dossier, TOKEN), base_url="http://dossier")
    dossier.store.close()


def said(about, **more):
    return {"decision": about.id, "name": "bob", "verdict": "approve", "token": TOKEN, **more}


def test_pages_are_what_the_records_say_and_nothing_is_loaded_or_framed(site):
    dossier, _, client = site
    answer = client.get("/")
    assert answer.status_code == 200 and "Waiting for approval" in answer.text
    assert answer.headers["x-frame-options"] == "DENY" and answer.headers["cache-control"] == "no-store"
    assert "<script" not in answer.text
    state = client.get("/state.json").json()
    assert state["entries"] == dossier.state.last and state["models"]["bank"]["may_run"] is False
    lines = client.get("/records.jsonl").content.splitlines(keepends=True)
    assert first_fault(from_line(x, "x") for x in lines) is None
    assert client.get("/healthz").text == "ok"
    assert client.get("/docs").status_code == 404


@pytest.mark.parametrize(
    ("more", "headers", "code", "words"),
    [
        ({"token": "wrong"}, {}, 403, "token"),
        ({"token": ""}, {}, 403, "token"),
        ({}, {"origin": "https://evil.invalid"}, 403, "another page"),
        ({"verdict": "maybe"}, {}, 422, "approve or reject"),
        ({"name": "tom"}, {}, 422, "made model"),
        ({"decision": "nothing"}, {}, 422, "no gate-decision"),
    ],
)
def test_approvals_are_refused_as_anywhere(site, more, headers, code, words):
    dossier, decision, client = site
    before = dossier.state.last
    answer = client.post("/approvals", data=said(decision, **more), headers=headers, follow_redirects=False)
    assert answer.status_code == code and words in answer.text
    assert dossier.refresh().last == before


def test_an_approval_is_recorded_and_signed(site):
    dossier, decision, client = site
    answer = client.post(
        "/approvals",
        data=said(decision, reason="read it"),
        headers={"origin": "http://dossier"},
        follow_redirects=False,
    )
    assert answer.status_code == 303
    assert [a.approver for a in dossier.state.each(Approval) if a.decision == decision.id] == ["bob"]
    assert dossier.signed()[-1].sequence == dossier.state.last
    assert "Waiting for approval" not in client.get("/").text
    assert json.loads(client.get("/state.json").text)["models"]["bank"]["may_run"] is True


def test_without_a_token_nobody_approves(site):
    dossier, decision, _ = site
    client = TestClient(app(dossier), base_url="http://dossier")
    assert "Waiting for approval" not in client.get("/").text
    assert client.post("/approvals", data=said(decision)).status_code == 403
    assert client.post("/approvals", data=said(decision, token="")).status_code == 403
