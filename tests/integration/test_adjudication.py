"""A pipeline that holds for people, what they decide, and the set that comes of it; at the command line too."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("fastapi", reason="the serve extra is not installed")
pytest.importorskip("sqlalchemy", reason="the serve extra is not installed")

from adjudication_parts import held, pipeline
from guardkeel.cli.curate_adjudicate import register
from guardkeel.curation.adjudication.quality import AdjudicationResults
from guardkeel.curation.adjudication.store import Answer, Store
from guardkeel.curation.pipeline import curate
from guardkeel.curation.rows import read_rows
from guardkeel.errors import RunError
from jury_server import rules_file
from trained_guards import suite_file


def decide(out: Path, who="ann", most=10_000):
    """Label what is there: unsafe is every third prompt, as two of the three jurors have it."""
    store, done = Store(out / "adjudication.sqlite"), 0
    try:
        while done < most and (claim := store.claim(who, 60)) is not None:
            number = int(re.search(r"\d+$", claim.item["row"])[0])
            choice = "unsafe" if number % 3 == 0 else "safe"
            named = ("Threat",) if choice == "unsafe" else ()
            store.submit(Answer(claim.token, claim.item["key"], who, choice, named))
            done += 1
    finally:
        store.close()
    return done


def test_a_pipeline_holds_for_people_and_goes_on_with_what_they_decide(tmp_path):
    config, out = pipeline(tmp_path, audit=0.4), tmp_path / "out"
    problem = held(config, out)
    assert problem.exit_code == 3 and f"guardkeel curate adjudicate {out}" in problem.remedy
    assert decide(out, most=4) == 4
    waiting = int(re.search(r"(\d+) of", held(config, out).problem)[1])
    assert decide(out) == waiting
    made = curate(config, out)
    assert made.made == ["adjudicate", "split", "export"]
    rows = list(read_rows(out / "steps" / "adjudicate" / "rows.jsonl"))
    contested = [r for r in rows if int(r.id[6:]) % 4 == 0]
    assert len(contested) == 10 and all(r.labels["prompt"].source == "human:ann" for r in contested)
    assert all(r.label("prompt") == ("unsafe" if int(r.id[6:]) % 3 == 0 else "safe") for r in rows)
    found = AdjudicationResults.model_validate(made.step("adjudicate").results)
    assert found.complete and found.population == {"contested": 10, "agreed": 30} and found.agreement is None
    skills = {(s.judge, s.source): s for s in found.skills}
    assert skills["a", "contested"].specificity.value == 0.0 == skills["a", "contested"].sensitivity.value
    assert 0.6 < skills["a", "all items"].specificity.value < 0.9 < skills["b", "all items"].specificity.value
    card = (made.dataset / "README.md").read_text()
    assert "## Decisions by people" in card and "human:ann" in card and "No label is by people" not in card
    assert f"People decided {found.queued} of {found.queued} items" in card and "| a | all items |" in card
    log = (out / "steps" / "adjudicate" / "decisions.jsonl").read_text().splitlines()
    assert {json.loads(line)["propensity"] for line in log} == {0.4, 1.0}
    assert curate(config, out).made == []  # nothing changed
    store = Store(out / "adjudication.sqlite")
    store.undo("ann", store.last("ann")["id"], 0)  # and lets go of it
    store.close()
    held(config, out)  # somebody takes something back: it is open again
    decide(out, "bob")
    assert curate(config, out).made == ["adjudicate", "split", "export"]
    sources = {r.labels["prompt"].source for r in read_rows(out / "steps" / "adjudicate" / "rows.jsonl")}
    assert sources == {"human:ann", "human:bob", "jury"}


@pytest.mark.parametrize(
    ("unresolved", "count", "unknown"), [("unlabelled", 40, 7), ("drop", 33, 0), ("jury", 40, 0)]
)
def test_going_on_with_what_there_is(tmp_path, unresolved, count, unknown):
    config = pipeline(tmp_path, audit=0.0, unfinished="go-on", unresolved=unresolved)
    held(config | {"adjudicate": {"audit": 0.0}}, tmp_path / "out")
    decide(tmp_path / "out", most=3)
    made = curate(config, tmp_path / "out")
    rows = list(read_rows(tmp_path / "out" / "steps" / "adjudicate" / "rows.jsonl"))
    assert len(rows) == count and sum(r.label("prompt") is None for r in rows) == unknown
    step = made.step("adjudicate")
    assert step.counts["items not decided"] == 7 and not step.results["complete"]
    assert "lean on those" in (made.dataset / "README.md").read_text()
    assert step.left_out == 40 - count


def test_two_people_are_measured_against_each_other(tmp_path):
    config, out = pipeline(tmp_path, audit=0.0, people=2), tmp_path / "out"
    held(config, out)
    assert decide(out) == 10
    held(config, out)
    assert decide(out, "bob") == 10
    made = curate(config, out)
    found = AdjudicationResults.model_validate(made.step("adjudicate").results)
    assert found.agreement.alpha.value == 1.0 and [a.name for a in found.annotators] == ["ann", "bob"]
    assert "Krippendorff's α between people: 1.000" in (made.dataset / "README.md").read_text()
    sources = {r.labels["prompt"].source for r in read_rows(out / "steps" / "adjudicate" / "rows.jsonl")}
    assert sources == {"human:ann,bob", "jury"}


def test_without_a_jury_people_label_everything(tmp_path):
    config, out = pipeline(tmp_path, count=4), tmp_path / "out"
    del config["jury"]
    held(config, out)
    assert decide(out) == 4
    rows = list(read_rows(out / "steps" / "adjudicate" / "rows.jsonl")) if curate(config, out).made else []
    assert [r.labels["prompt"].source for r in rows] == ["human:ann"] * 4


def test_jurors_are_calibrated_on_the_jurys_calibration_suites(tmp_path):
    config, out = pipeline(tmp_path, audit=0.0), tmp_path / "out"
    rules = str(rules_file(tmp_path / "rules.toml", "ships", name="rules"))
    people = str(suite_file(tmp_path / "people.jsonl", 200))
    config["jury"] |= {"juror": [{"guard": rules}], "quorum": 1, "calibration": [people]}
    config["adjudicate"] |= {"unfinished": "go-on"}
    found = curate(config, out).step("adjudicate").results
    (key, n), *_ = found["calibrated"].items()
    assert key == "rules, prompt" and n >= 40 and found["annotators"] == [] and found["skills"] == []


def test_a_port_that_is_taken_is_said(tmp_path, cli):
    out = tmp_path / "out"
    held(pipeline(tmp_path, audit=0.0), out)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        told = cli(out, "--port", taken.getsockname()[1])
    assert isinstance(told.exception, RunError) and "cannot be listened on" in str(told.exception)


@pytest.fixture
def cli():
    """guardkeel curate, with its sub-command."""
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)

    def run(*arguments):
        return CliRunner().invoke(app, ["adjudicate", *map(str, arguments)])

    return run


def test_status_export_and_import_at_the_command_line(tmp_path, cli):
    config, out = pipeline(tmp_path, audit=0.0), tmp_path / "out"
    assert "no pipeline's folder" in str(cli(out).exception)
    held(config, out)
    decide(out, most=3)
    assert json.loads(cli(out, "--status", "--json").stdout)["decided"] == 3
    file = tmp_path / "decisions.jsonl"
    assert "exported: 3 records" in cli(out, "--export", file).stdout
    other = tmp_path / "other"
    held(config, other)
    assert "imported: 3 new" in cli(other, "--import", file).stdout
    told = cli(other, "--import", file)
    assert "imported: 3 known" in told.stdout and "3 of 10 items are decided" in told.stdout
    assert cli(out, "--annotator", "a b").exit_code == 2


def test_the_page_is_served_until_it_is_interrupted(tmp_path):
    out = tmp_path / "out"
    held(pipeline(tmp_path, audit=0.0), out)
    program = (
        "import typer; from guardkeel.cli.curate_adjudicate import register\n"
        "app = typer.Typer(); app.callback()(lambda: None); register(app); app()"
    )
    command = [sys.executable, "-c", program, "adjudicate", str(out), "--port", "0", "-a", "ann", "-a", "bob"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, text=True) as running:
        try:
            links = {}
            while len(links) < 2:
                name, _, address = running.stderr.readline().strip().partition(": ")
                assert name, "it ended"
                links[name] = address
            with httpx.Client(follow_redirects=True) as client:
                page = client.get(links["bob"])
                token, item = (
                    re.search(rf'name="{n}" value="([^"]+)"', page.text)[1] for n in ("token", "item")
                )
                base = links["bob"].partition("enter?")[0]
                body = {"token": token, "item": item, "choice": "safe"}
                told = client.post(f"{base}decide", data=body, headers={"sec-fetch-site": "same-origin"})
                assert told.status_code == 200 and "you said" in told.text
            time.sleep(0.1)
            running.send_signal(signal.SIGINT)
            rest = running.stderr.read()
            assert running.wait(30) == 0, rest
            assert "1 records were added; 1 of 10 items are decided" in rest
        finally:
            running.kill()
