"""Regimes: applicability with reasons, clocks, drafts; nothing claims compliance."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

pytest.importorskip("sqlalchemy", reason="the dossier extra is not installed")
pytest.importorskip("cryptography", reason="the dossier extra is not installed")

from dossier_cases import START, Clock, basics, lived, model, opened
from guardkeel.dossier.kinds import Incident, Organisation, Report
from guardkeel.dossier.regimes import DISCLAIMER, applicability, drafts, load, regimes
from guardkeel.dossier.regimes.clocks import clocks
from guardkeel.errors import ConfigError

BIG = {"training_flop": 9e25, "modification_flop": 2e25, "general_purpose": True}


@pytest.fixture
def dossier(tmp_path):
    with opened(tmp_path / "d", Clock()) as made:
        made.record(basics(), "ada")
        yield made


def verdict(dossier, name, about, organisation=None, at=START):
    if organisation is not None:
        dossier.record([Organisation(id="us", name="n", **organisation)], "ada")
    found = applicability(dossier.state, load(name), about, at)
    return found.verdict, found.reasons


def test_small_guards_are_told_why_not(dossier):
    small = model("small", training_flop=1e20)
    said, reasons = verdict(dossier, "eu-gpai-code", small, {"regions": ["eu"]})
    assert said == "does not seem to apply"
    assert any("10^25" in r and r.startswith("✗") for r in reasons) and any(
        "classifies" in r for r in reasons
    )
    said, reasons = verdict(dossier, "us-ca-sb53", small, {"regions": ["us-ca"], "revenue_usd": 1e6})
    assert said == "does not seem to apply" and any("no large frontier developer" in r for r in reasons)


def test_what_is_not_registered_is_not_known(dossier):
    assert verdict(dossier, "us-ca-sb53", model())[0] == "not known"
    said, reasons = verdict(dossier, "us-ca-sb53", model(), {"regions": ["us-ca"]})
    assert said == "not known" and "? its training compute is not registered" in reasons


def test_frontier_models_and_dates(dossier):
    big = model("big", **BIG)
    assert (
        verdict(dossier, "us-ca-sb53", big, {"regions": ["us-ca"], "revenue_usd": 1e9})[0] == "seems to apply"
    )
    below = model("below", training_flop=9e25)  # fine-tuning counts: 9e25 alone is below 10^26
    assert verdict(dossier, "us-ca-sb53", below)[0] == "does not seem to apply"
    everywhere = {"regions": ["us-ny", "eu"], "code_signatory": True}
    said, reasons = verdict(dossier, "us-ny-raise", big, everywhere)
    assert said == "does not seem to apply" and "takes effect on 2027-01-01" in reasons[0]
    assert verdict(dossier, "us-ny-raise", big, at=datetime(2027, 2, 1, tzinfo=UTC))[0] == "seems to apply"
    assert verdict(dossier, "eu-gpai-code", big)[0] == "seems to apply"
    college = {**everywhere, "accredited_college": True}
    assert "✗ accredited" in str(
        verdict(dossier, "us-ny-raise", big, college, datetime(2027, 2, 1, tzinfo=UTC))
    )
    assert verdict(dossier, "nist-ai-rmf", big)[0] == "voluntary"


def incident(dossier, **more):
    known = dossier.state.get(type(model()), "guard")
    said = {"title": "t", "model": "guard", "fingerprint": known.fingerprint, "aware_at": START, **more}
    return Incident(id=said.pop("id", "i"), **said)


def due(dossier, at=START):
    return {(c.regime, c.what): c for c in clocks(dossier.state, at)}


@pytest.mark.parametrize(
    ("harm", "days"),
    [("critical-infrastructure", 2), ("cybersecurity", 5), ("death", 10), ("health", 15), ("unknown", 15)],
)
def test_initial_reports_of_the_code_are_due_by_kind_of_harm(dossier, harm, days):
    dossier.record([incident(dossier, harm=harm)], "eve")
    mine = [c for c in clocks(dossier.state, START) if c.regime == "eu-gpai-code" and c.report == "initial"]
    assert [c.due - START for c in mine] == [timedelta(days=days)]


def test_clocks_of_the_states(dossier):
    dossier.record([incident(dossier, harm="death", imminent=True)], "eve")
    found = due(dossier)
    hours = {k: (c.due - START) / timedelta(hours=1) for k, c in found.items()}
    assert hours["us-ca-sb53", "critical safety incident"] == 15 * 24
    assert hours["us-ny-raise", "critical safety incident"] == 72
    assert hours["us-ca-sb53", "imminent risk of death or serious injury"] == 24
    assert hours["us-ny-raise", "imminent risk of death or serious injury"] == 24
    dossier.record([incident(dossier, id="j", harm="death")], "eve")
    assert not [c for c in clocks(dossier.state, START) if c.incident == "j" and "imminent" in c.what]


def test_a_clock_runs_out_is_met_or_met_late(dossier):
    dossier.record([incident(dossier, harm="death")], "eve")
    key = ("eu-gpai-code", "initial, death")
    assert due(dossier)[key].state == "due"
    late = START + timedelta(days=11)
    assert due(dossier, late)[key].state == "overdue" and "ago" in due(dossier, late)[key].due_text
    for n, (after, word) in enumerate((((20), "reported late"), ((3), "reported"))):
        sent = Report(
            id=f"r{n}",
            regime="eu-gpai-code",
            form="initial",
            incident="i",
            sent_at=START + timedelta(days=after),
        )
        dossier.record([sent], "eve")
        assert due(dossier, late)[key].state == word


def test_intermediate_reports_go_on_until_it_is_resolved_and_then_a_final_one(dossier):
    dossier.record([incident(dossier, harm="death")], "eve")
    assert ("eu-gpai-code", "intermediate") not in due(dossier)
    for n, days in enumerate((5, 30)):
        form = "initial" if n == 0 else "intermediate"
        at = START + timedelta(days=days)
        dossier.record(
            [Report(id=f"r{n}", regime="eu-gpai-code", form=form, incident="i", sent_at=at)], "eve"
        )
        assert due(dossier)["eu-gpai-code", "intermediate"].due == at + timedelta(days=28)
    resolved = START + timedelta(hours=1)
    dossier.record([incident(dossier, harm="death", resolved_at=resolved, status="resolved")], "eve")
    found = due(dossier)
    assert ("eu-gpai-code", "intermediate") not in found
    assert found["eu-gpai-code", "final"].due == resolved + timedelta(days=60)


def test_no_incident_no_clock(dossier):
    dossier.record(
        [incident(dossier, harm="none"), incident(dossier, id="j", status="not-an-incident")], "eve"
    )
    assert clocks(dossier.state, START) == []


def test_drafts_say_what_they_are_and_what_is_missing(tmp_path):
    dossier, guard = lived(tmp_path / "d", tmp_path / "run", Clock())
    with dossier:
        state, now = dossier.state, dossier.now
        report = drafts.model_report(state, guard, now)
        heads = [f"7.{i}" for i in range(1, 8)]
        assert re.findall(r"^## (7\.\d)", report, re.M) == heads
        for words in ("recall 0.", "third party, independent", "Screening chats", "allow-with-safeguards"):
            assert words in report
        assert report.count("**Missing**") >= 3
        found = state.get(Incident, "i1")
        for name in ("eu-gpai-code", "us-ca-sb53", "us-ny-raise"):
            first = drafts.incident(state, found, load(name), "initial", now)
            assert "secret story" in first or name == "eu-gpai-code"
            last = drafts.incident(state, found, load(name), "final", now)
            assert last.count("## ") >= first.count("## ")
        eu = drafts.incident(state, found, load("eu-gpai-code"), "initial", now)
        assert [f"Measure 9.2 ({i})" in eu for i in range(1, 10)] == [True] * 7 + [False] * 2
        everything = [report, eu, drafts.transparency(state, guard, now), drafts.risk_profile(state, now)]
        assert all(DISCLAIMER in text for text in everything)
        assert not [t for t in everything if re.search(r"\b(complies|compliant|in compliance)\b", t, re.I)]
        with pytest.raises(ConfigError, match="has no 'initial' report"):
            drafts.incident(state, found, load("nist-ai-rmf"), "initial", now)


def test_every_regime_has_sources_and_a_day(tmp_path):
    for regime in regimes():
        assert regime.sources and regime.as_of and len(regime.digest) == 64
        assert all(c.source for c in regime.clock) and all(f.source for f in regime.field)
    with pytest.raises(ConfigError, match="unknown regime"):
        load("nowhere")
