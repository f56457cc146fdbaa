"""Looking at what is out: logs, audits, streams, and what they open."""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime

import numpy as np
import pytest

pytest.importorskip("sqlalchemy", reason="the dossier extra is not installed")
pytest.importorskip("cryptography", reason="the dossier extra is not installed")

import sqlalchemy

from dossier_cases import START, Clock, basics, digest, model, opened
from guardkeel.dossier.kinds import Finding, Incident, MonitorPlan, Observation, Stream
from guardkeel.dossier.monitoring import sources, watch
from guardkeel.errors import DataError, RunError
from guardkeel.evaluation.runs import read_audit
from guardkeel.moderation.tables import metadata
from guardkeel.report.dossier import page
from run_directories import write_run

GUARD = model()
T0 = START.timestamp()


def rows(n=2000, flagged=0.1, lost=0.01, recall=0.9, chance=(0.2, 0.5), seed=0):
    """A service's log: verdicts, and feedback on those that were drawn for review."""
    rng = np.random.default_rng(seed)
    verdicts, feedback = [], []
    for i in range(n):
        gone = rng.random() < lost
        hit = bool(rng.random() < flagged)
        verdicts.append(
            {"id": f"v{i:06}", "created": T0 + i, "unsafe": None if gone else 0.9 * hit, "flagged": hit}
        )
    for i in range(n // 4):
        hit = bool(rng.random() < recall)
        p = chance[0] if hit else chance[1]
        if rng.random() < p:
            feedback.append({"sequence": len(feedback) + 1, "verdict": f"v{i:06}", "received": T0 + i, "unsafe": True,
                             "flagged": hit, "propensity": p, "first": True})  # fmt: skip
    return verdicts, feedback


def exported(path, verdicts, feedback):
    path.write_text("".join(json.dumps(r) + "\n" for r in (*verdicts, *feedback)))
    return str(path)


def plan(*streams):
    return MonitorPlan(
        id="p", model="guard", fingerprint=GUARD.fingerprint, streams=list(streams), since=START
    )


@pytest.fixture
def dossier(tmp_path):
    with opened(tmp_path / "d", Clock()) as made:
        made.record(basics(), "ada")
        yield made


def looked(dossier, seen, *streams, audits=()):
    one = plan(*streams)
    dossier.record([one], "ada")
    made = watch.look(dossier.state, one, seen, audits, dossier.now)
    dossier.record(made, "ada")
    return {o.stream: o for o in made if isinstance(o, Observation)}, [
        m for m in made if not isinstance(m, Observation)
    ]


FLAGGED = Stream(name="flagged", measure="unsafe rate", baseline=0.1, tolerance=0.02)
LOST = Stream(name="lost", measure="unscored rate", baseline=0.01, tolerance=0.005, direction="rise")
RECALL = Stream(name="recall", measure="recall", source="feedback", baseline=0.9, tolerance=0.02, direction="fall",
                least_propensity=0.2, opens="incident")  # fmt: skip


def test_a_service_that_is_as_it_was_opens_nothing(dossier, tmp_path):
    seen = sources.read(exported(tmp_path / "log.jsonl", *rows()), START)
    found, opened_ = looked(dossier, seen, FLAGGED, LOST, RECALL)
    assert opened_ == [] and not any(o.changed for o in found.values())
    assert found["flagged"].low < 0.1 < found["flagged"].high
    assert found["lost"].n == 2000 and found["flagged"].n == 2000 - found["lost"].hits
    assert found["recall"].estimate == pytest.approx(0.9, abs=0.06)  # weights undo the unequal draws


def test_drift_in_flags_opens_a_finding_once(dossier, tmp_path):
    seen = sources.read(exported(tmp_path / "log.jsonl", *rows(flagged=0.2)), START)
    found, opened_ = looked(dossier, seen, FLAGGED)
    assert found["flagged"].changed and found["flagged"].log_e > math.log(100)
    (finding,) = opened_
    assert (
        isinstance(finding, Finding) and "unsafe rate is 0." in finding.what and "was 0.100" in finding.what
    )
    dossier.store.clock.later(hours=1)
    again = watch.look(dossier.state, plan(FLAGGED), seen, (), dossier.now)
    assert [type(m) for m in again] == [Observation]


def by(*names):
    """Opinions of experts whose weights have these digests."""
    return {f"expert {i}": {"digest": name and digest(name)} for i, name in enumerate(names)}


def test_verdicts_of_other_weights_open_a_finding(dossier, tmp_path):
    dossier.record([model("plain")], "ada")
    verdicts, _ = rows(n=100, flagged=0.1)
    own = [{**v, "opinions": by("guard", "rules")} for v in verdicts[:60]]
    unknown = [{**v, "opinions": by("", "rules")} for v in verdicts[60:70]]
    foreign = [{**v, "opinions": by("plain", "rules")} for v in verdicts[70:]]
    seen = sources.read(exported(tmp_path / "own.jsonl", own + unknown, []), START)
    found, opened_ = looked(dossier, seen, FLAGGED)
    assert not found["answered by"].changed and found["answered by"].n == 60 and opened_ == []
    dossier.store.clock.later(hours=1)
    seen = sources.read(exported(tmp_path / "all.jsonl", own + unknown + foreign, []), START)
    made = watch.look(dossier.state, plan(FLAGGED), seen, (), dossier.now)
    look = next(m for m in made if getattr(m, "stream", "") == "answered by")
    assert look.changed and look.n == 90 and look.hits == 60
    [finding] = [m for m in made if isinstance(m, Finding)]
    assert finding.level == "launch" and finding.what == look.why
    assert look.why.startswith("30 of 90 verdicts are not of its weights but of plain, sha256 ")
    dossier.record(made, "ada")
    assert f"<small>{look.why}</small>" in page(dossier.state, dossier.now)
    dossier.store.clock.later(hours=1)
    again = watch.look(dossier.state, plan(FLAGGED), seen, (), dossier.now)
    assert not any(isinstance(m, Finding) for m in again) and again[-1].changed
    dossier.store.clock.later(hours=1)
    anew = plan(FLAGGED).model_copy(update={"since": dossier.now})  # the plan of a model that was put back
    dossier.record([anew], "ada")
    [second] = [m for m in watch.look(dossier.state, anew, seen, (), dossier.now) if isinstance(m, Finding)]
    assert second.id == f"{finding.id} 2"


def test_lost_verdicts_and_recall_open_what_the_plan_says(dossier, tmp_path):
    seen = sources.read(exported(tmp_path / "log.jsonl", *rows(lost=0.06, recall=0.6)), START)
    found, opened_ = looked(dossier, seen, LOST, RECALL)
    assert found["lost"].changed and found["recall"].changed
    draft = next(m for m in opened_ if isinstance(m, Incident))
    assert (
        draft.status == "draft"
        and draft.aware_at == dossier.now
        and draft.observations == [found["recall"].id]
    )


def test_a_change_in_the_harmless_direction_is_no_alarm(dossier, tmp_path):
    seen = sources.read(exported(tmp_path / "log.jsonl", *rows(lost=0.0, recall=1.0)), START)
    found, _ = looked(dossier, seen, LOST, RECALL)
    assert not found["lost"].changed and not found["recall"].changed


def test_feedback_that_people_sent_in_does_not_count(tmp_path):
    verdicts, feedback = rows()
    offered = [
        {**f, "sequence": 10_000 + i, "propensity": None, "flagged": False} for i, f in enumerate(feedback)
    ]
    second = [{**f, "sequence": 20_000 + i, "first": False, "flagged": False} for i, f in enumerate(feedback)]
    safe = [{**f, "sequence": 30_000 + i, "unsafe": False} for i, f in enumerate(feedback)]
    rare = [{**feedback[0], "sequence": 40_000, "propensity": 1e-6}]
    plain = sources.read(exported(tmp_path / "a.jsonl", verdicts, feedback), START)
    more = sources.read(
        exported(tmp_path / "b.jsonl", verdicts, [*feedback, *offered, *second, *safe, *rare]), START
    )
    assert more.caught == plain.caught and more.weights == plain.weights and more.left_out == 1


def test_the_service_s_own_tables_are_read(tmp_path):
    url = f"sqlite:///{tmp_path}/log.db"
    engine = sqlalchemy.create_engine(url)
    metadata.create_all(engine)
    verdicts, feedback = rows(n=400)
    blank = {"request": "r", "key": "k", "side": "prompt", "language": "en", "context": [], "digest": "0",
             "policy": "p", "policy_version": 1, "strictness": "strict", "unscored": "", "disagreement": 0.0,
             "vote": 0.5, "weights_version": 0, "propensity": 0.2, "audited": True, "advice": {}, "weights": {},
             "opinions": {}, "categories": [], "windows": 1, "seconds": 0.1}  # fmt: skip
    said = {
        "id": None,
        "source": "review",
        "reviewer": "r",
        "key": "k",
        "context": [],
        "advice": {},
        "vote": 0.5,
    }
    with engine.begin() as connection:
        verdicts = [{**v, "opinions": by("plain")} for v in verdicts]
        connection.execute(metadata.tables["verdicts"].insert(), [{**blank, **v} for v in verdicts])
        connection.execute(
            metadata.tables["feedback"].insert(), [{**said, **f, "id": str(f["sequence"])} for f in feedback]
        )
    engine.dispose()
    assert sources.read(url, START) == sources.read(
        exported(tmp_path / "log.jsonl", verdicts, feedback), START
    )
    assert sources.read(url, START).answered_by == {frozenset([digest("plain")]): 400}
    later = datetime.fromtimestamp(T0 + 300, UTC)
    assert len(sources.read(url, later).unscored) == 100


def test_bad_logs_are_named(tmp_path):
    for line, said in (
        ("{", "line 1: no JSON"),
        ("[]", "line 1: no object"),
        ('{"id": "v", "created": "yesterday"}', "created is 'yesterday'"),
        ('{"id": "v", "created": 9e9, "unsafe": 0.5, "flagged": "yes"}', "flagged is 'yes'"),
        (
            '{"id": "v", "created": 9e9, "unsafe": 0.5, "flagged": true, "opinions": ["a"]}',
            "opinions is ['a']",
        ),
    ):
        (tmp_path / "log.jsonl").write_text(line + "\n")
        with pytest.raises(DataError, match=re.escape(said)):
            sources.read(str(tmp_path / "log.jsonl"), START)
    with pytest.raises(DataError, match="cannot be read"):
        sources.read(str(tmp_path / "nowhere.jsonl"), START)
    with pytest.raises(RunError, match="cannot be read"):
        sources.read(f"sqlite:///{tmp_path}/empty.db", START)


def test_without_rows_nothing_is_said(dossier):
    found, opened_ = looked(dossier, None, FLAGGED)
    assert opened_ == [] and found["flagged"].n == 0 and found["flagged"].why == "no log was given"
    assert found["flagged"].estimate is None and found["flagged"].log_e == 0.0


def test_fresh_audits_are_streams_too(dossier, tmp_path):
    write_run(tmp_path / "good", items=200, collapse=0.0, layers=4)
    write_run(tmp_path / "bad", items=200, collapse=1.0, layers=4, seed=1)
    info = read_audit(tmp_path / "good").candidate.info
    dossier.record([model("guard", digest=info.digest)], "ada")
    known = dossier.state.get(type(GUARD), "guard")
    streams = [
        Stream(
            name="recall", measure="recall", source="audits", baseline=0.85, tolerance=0.05, direction="fall"
        ),
        Stream(name="all", measure="unsafe rate", source="audits", baseline=0.4, tolerance=0.2),
        Stream(
            name="lost",
            measure="unscored rate",
            source="audits",
            baseline=0.01,
            tolerance=0.02,
            direction="rise",
        ),
        Stream(
            name="cka", measure="geometry", source="audits", baseline=0.97, tolerance=0.02, direction="fall"
        ),
    ]
    one = MonitorPlan(id="p", model="guard", fingerprint=known.fingerprint, streams=streams, since=START)
    dossier.record([one], "ada")

    def look(*folders):
        return {
            o.stream: o
            for o in watch.look(dossier.state, one, None, folders, dossier.now)
            if isinstance(o, Observation)
        }

    calm = look(tmp_path / "good")
    assert not any(o.changed for o in calm.values())
    found = read_audit(tmp_path / "good").candidate.overall
    assert calm["recall"].n == found.recall.n and calm["recall"].estimate == pytest.approx(found.recall.value)
    alarm = look(tmp_path / "good", tmp_path / "bad")
    assert alarm["recall"].changed and not alarm["lost"].changed
    geometry = look(*[tmp_path / "bad"] * 12)["cka"]
    assert geometry.changed and geometry.n == 12
    other = model("other", digest=digest("other"))
    dossier.record([other], "ada")
    away = one.model_copy(update={"model": "other", "fingerprint": other.fingerprint})
    with pytest.raises(DataError, match="did not judge 'other'"):
        watch.look(dossier.state, away, None, [tmp_path / "good"], dossier.now)


def test_looking_often_changes_nothing_but_when_it_is_seen(dossier, tmp_path):
    """A test at every hundredth row gives the same largest e-value as one look at the end."""
    seen = sources.read(exported(tmp_path / "log.jsonl", *rows(flagged=0.13)), START)
    one = plan(FLAGGED)
    ends = []
    for n in range(100, len(seen.flagged), 100):
        part = watch.Rows(np.array(seen.flagged[:n], dtype=np.float64))
        ends.append(watch.observe(one, FLAGGED, part, dossier.now, "").log_e)
    assert ends == sorted(ends)
    whole = watch.Rows(np.array(seen.flagged[:n], dtype=np.float64))
    assert watch.observe(one, FLAGGED, whole, dossier.now, "").log_e == ends[-1]
