"""The gate: every outcome, and that nothing missing, errored, spoiled, stale or late ever passes."""

from __future__ import annotations

from datetime import timedelta

import pytest

pytest.importorskip("sqlalchemy", reason="the dossier extra is not installed")
pytest.importorskip("cryptography", reason="the dossier extra is not installed")

from dossier_cases import START, Clock, assessment, basics, digest, model, opened, results, run
from guardkeel.dossier.evidence import EVIDENCE, Evidence, on_disk, taken
from guardkeel.dossier.gate import decide
from guardkeel.dossier.kinds import (
    Approval,
    Deployment,
    EvalSpec,
    Exposure,
    Finding,
    Incident,
    Judge,
    MonitorPlan,
    Waiver,
)
from guardkeel.dossier.policy import PolicyFile, example, parse_policy
from guardkeel.dossier.standing import standing
from guardkeel.errors import ConfigError

GUARD = model()
RULE = "release/recall launch min on final"


def present(_):
    return Evidence("present")


class Life:
    """A dossier with a policy that is older than its runs."""

    def __init__(self, folder, **policy):
        self.clock = Clock()
        self.dossier = opened(folder, self.clock)
        said = {"name": "release", "threshold": [{"metric": "recall", "min": 0.9}], **policy}
        self.policy = PolicyFile.model_validate(said)
        self.dossier.record([*basics(), *self.policy.records()], "ada")
        self.clock.later(days=3)
        self.dossier.record([assessment(GUARD, self.clock)], "ada")

    def ran(self, id="r1", about=GUARD, recall=0.95, unscored=0, n=200, **more):
        now = self.clock()
        said = {"started_at": now - timedelta(hours=1), "finished_at": now, **more}
        errored = said.get("status") == "errored"
        self.dossier.record(
            [run(about, id, **said), *([] if errored else results(id, recall, unscored, n))], "eve"
        )
        return self

    def decide(self, about=GUARD, check=present):
        self.clock.later(minutes=1)
        return decide(self.dossier.state, about, "release", self.clock(), check)

    def why(self, rule, **more):
        found = self.decide(**more)
        return next((t.outcome, t.reason) for t in found.trace if t.rule == rule)


@pytest.fixture
def life(tmp_path):
    lives = []

    def make(**policy):
        lives.append(Life(tmp_path / f"d{len(lives)}", **policy))
        return lives[-1]

    yield make
    for one in lives:
        one.dossier.store.close()


def test_allow_with_a_trace_to_every_record(life):
    found = life().ran().decide()
    assert found.outcome == "allow"
    traced = next(t for t in found.trace if t.rule == RULE)
    assert traced.outcome == "pass" and "0.950 [0.930, 0.970], n = 200" in traced.observed
    assert {"threshold:release/recall launch min", "run:r1", "result:r1/recall"} <= set(traced.evidence)
    assert all(name in found.inputs for t in found.trace for name in t.evidence)


def test_deny_when_a_launch_threshold_breaks_and_hold_when_chance_is_not_ruled_out(life):
    denied = life().ran(recall=0.85).decide()
    assert denied.outcome == "deny" and RULE in denied.reason
    held = life().ran(recall=0.91).decide()
    assert held.outcome == "hold" and next(t for t in held.trace if t.rule == RULE).reason.startswith(
        "too little data"
    )


@pytest.mark.parametrize(
    ("story", "rule", "says"),
    [
        (lambda x: x, "form assurance", "missing evidence: no assurance run"),
        (lambda x: x, RULE, "not run on this very model"),
        (
            lambda x: x.ran(status="errored", errors="out of memory"),
            "evidence of final",
            "errored (out of memory)",
        ),
        (lambda x: x.ran().ran("r2", status="errored"), "evidence of final", "r2 errored"),
        (lambda x: x.ran(unscored=30), "unscored on final", "unscored is never safe"),
        (lambda x: x.ran(n=40), RULE, "too little data: 40 items"),
        (lambda x: x.ran(decision="hold"), "audit's gate on final", "it said hold"),
    ],
)
def test_missing_and_errored_evidence_holds(life, story, rule, says):
    found = story(life()).decide()
    assert found.outcome == "hold"
    assert says in next(t.reason for t in found.trace if t.rule == rule)


def test_an_audit_that_was_denied_is_denied(life):
    assert life().ran(decision="deny").decide().outcome == "deny"


@pytest.mark.parametrize("began, outcome", [(0, "pass"), (-1, "hold")])
def test_a_run_that_began_in_the_second_of_its_threshold_counts_as_later(life, began, outcome):
    made = life()
    made.clock.later(seconds=0.4)
    changed = {**made.policy.model_dump(), "threshold": [{"metric": "recall", "min": 0.8}]}
    made.dossier.record(PolicyFile.model_validate(changed).records(), "ada")
    now = made.clock.later(seconds=0.3)
    made.ran(started_at=now.replace(microsecond=0) + timedelta(seconds=began), finished_at=now)
    assert made.why(RULE)[0] == outcome  # run directories hold whole seconds


def test_a_threshold_that_was_set_after_the_run_is_flagged(life):
    made = life().ran()
    laxer = PolicyFile.model_validate(
        {**made.policy.model_dump(), "threshold": [{"metric": "recall", "min": 0.5}]}
    )
    made.dossier.record(laxer.records(), "ada")
    outcome, reason = made.why(RULE)
    assert outcome == "hold" and "flagged: the threshold was set on" in reason
    made.clock.later(days=1)
    assert made.ran("r2").why(RULE)[0] == "pass"


def test_a_late_threshold_that_is_broken_is_broken_all_the_same(life):
    made = life().ran(recall=0.4)
    late = PolicyFile.model_validate(
        {**made.policy.model_dump(), "threshold": [{"metric": "recall", "min": 0.5}]}
    )
    made.dossier.record(late.records(), "ada")
    outcome, reason = made.why(RULE)
    assert outcome == "fail" and "flagged" in reason


def test_a_backdated_start_does_not_help_and_neither_does_a_later_one(life):
    """A run that says it began before its threshold, or was recorded before it, is not under it."""
    made = life()
    made.ran(started_at=START - timedelta(hours=1))
    assert "flagged" in made.why(RULE)[1]


def test_evidence_that_was_spoiled_afterwards_holds(life):
    made = life().ran()
    assert made.decide().outcome == "allow"
    leak = Exposure(
        id="leak", prompt_set="hidden", digest=digest("hidden 1"), to="training", at=START, how="found later"
    )
    made.dossier.record([leak], "ada")
    outcome, reason = made.why("evidence of final")
    assert outcome == "hold" and "spoiled" in reason and "leak" in reason


def test_deleted_and_changed_run_directories_hold(life, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in EVIDENCE[:3]:
        (folder / name).write_text(name)
    made = life().ran(location=str(folder), files=taken(folder))
    assert made.decide(check=on_disk).outcome == "allow"
    (folder / "run.json").write_text("run.jsoN")
    assert "changed" in made.why("evidence of final", check=on_disk)[1]
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    outcome, reason = made.why("evidence of final", check=on_disk)
    assert outcome == "hold" and "missing" in reason
    assert "no file of it was recorded" in life().ran().why("evidence of final", check=on_disk)[1]


def test_an_old_run_and_an_expired_assessment_hold(life):
    made = life().ran()
    made.clock.later(days=100)
    outcome, reason = made.why("assessment")
    assert outcome == "hold" and "it expired on" in reason
    made.clock.later(days=100)
    assert "days old" in made.why("evidence of final")[1]


def test_residual_risk_and_dissent(life):
    made = life(require={"domains": ["harm"]}).ran()
    high = assessment(GUARD, made.clock, id="a2", residual=[{"domain": "harm", "risk": "high"}])
    made.dossier.record([high], "ada")
    assert made.decide().outcome == "deny"
    silent = assessment(GUARD, made.clock, id="a3", residual=[])
    made.dossier.record([silent], "ada")
    assert "says nothing of harm" in made.why("assessment")[1]
    dissent = assessment(GUARD, made.clock, id="a4", opinions=[{"who": "eve", "view": "dissent"}])
    made.dossier.record([dissent], "ada")
    assert "dissent by eve is on record" in made.why("assessment")[1]


def test_alerts_need_safeguards(life):
    lines = [{"metric": "recall", "min": 0.97, "level": "alert"}, {"metric": "recall", "min": 0.9}]
    bare = life(threshold=lines).ran().decide()
    assert bare.outcome == "hold" and "names no safeguards" in bare.reason
    found = (
        life(threshold=lines, release={"safeguards": ["a person reads what it lets through"]}).ran().decide()
    )
    assert found.outcome == "allow-with-safeguards" and found.safeguards


def test_too_little_data_may_be_staged_but_nothing_else_may(life):
    staged = life(release={"staged": True})
    assert staged.ran(recall=0.91).decide().outcome == "staged"
    assert life(release={"staged": True}).ran(status="errored").decide().outcome == "hold"
    critical = life(
        release={"staged": True}, threshold=[{"metric": "recall", "min": 0.9, "level": "critical"}]
    )
    assert critical.ran(recall=0.91).decide().outcome == "hold"


def waiver(made, rule=RULE, id="w", **more):
    said = {
        "granted_by": "eve",
        "reason": "shown elsewhere",
        "expires_at": made.clock() + timedelta(days=7),
        **more,
    }
    return Waiver(id=id, rule=rule, model="guard", fingerprint=GUARD.fingerprint, **said)


def test_a_waiver_holds_until_its_day_and_never_for_a_critical_rule(life):
    made = life(release={"safeguards": ["review"]}).ran(recall=0.85)
    made.dossier.record([waiver(made)], "eve")
    decision = made.decide()
    assert decision.outcome == "allow-with-safeguards"
    made.dossier.record([decision], "ada")
    ok = Approval(id="ok", decision=decision.id, approver="bob", verdict="approve", at=made.clock.at)
    made.dossier.record([ok], "bob")
    assert standing(made.dossier.state, GUARD, made.clock()).may_run
    made.clock.later(days=8)
    ended = standing(made.dossier.state, GUARD, made.clock())
    assert not ended.may_run and "has expired" in ended.reasons[0]
    assert made.decide().outcome == "deny"
    revoked = waiver(made, revoked=True)
    made.dossier.record([revoked], "eve")

    lines = [{"metric": "recall", "min": 0.9, "level": "critical"}]
    hard = life(threshold=lines, release={"safeguards": ["review"]}).ran(recall=0.85)
    hard.dossier.record([waiver(hard, "release/recall critical min on final")], "eve")
    found = hard.decide()
    assert found.outcome == "deny" and "cannot be waived" in next(
        t.reason for t in found.trace if t.outcome == "fail"
    )


def test_lineage_findings_incidents_and_the_monitor_plan(life):
    orphan = model("orphan", parents=[{"digest": digest("nobody"), "relation": "merge"}])
    made = life(require={"monitor_plan": True})
    made.dossier.record([orphan], "ada")
    assert made.why("lineage", about=orphan)[0] == "hold"
    made.ran()
    assert made.why("monitor plan")[0] == "hold"
    plan = MonitorPlan(id="p", model="guard", fingerprint=GUARD.fingerprint, streams=[], since=made.clock.at)
    finding = Finding(
        id="f", model="guard", fingerprint=GUARD.fingerprint, level="launch", what="bypass by rhyme"
    )
    incident = Incident(id="i", title="t", model="guard", fingerprint=GUARD.fingerprint, aware_at=START)
    made.dossier.record([plan], "ada")
    assert made.decide().outcome == "allow"
    made.dossier.record([finding, incident], "ada")
    assert made.why("finding f")[0] == "fail" and made.why("incident i")[0] == "fail"


def test_a_judge_without_human_labels_holds(life):
    made = life()
    judged = EvalSpec(id="final", form="assurance", prompt_sets=["hidden"], judged=True)
    made.dossier.record([judged, Judge(id="j", model="some-model")], "ada")
    made.ran(judge="j")
    assert "was measured on 0 human labels" in made.why("evidence of final")[1]
    made.dossier.record([Judge(id="j", model="some-model", sensitivity=0.4, specificity=0.6, n=120)], "ada")
    assert "no better than chance" in made.why("evidence of final")[1]
    made.dossier.record([Judge(id="j", model="some-model", sensitivity=0.9, specificity=0.95, n=120)], "ada")
    assert made.why("evidence of final")[0] == "pass"
    assert "recall cannot be corrected" in made.why(RULE)[1]  # it has no false positives beside it


def test_roll_back_names_the_last_one_that_may_run(life):
    made = life().ran()
    new = model("newer", trainers=["tom"], parents=[{"digest": GUARD.digest, "relation": "fine-tune"}])
    for i, one in enumerate((GUARD, new)):
        if i:
            made.dossier.record([new, assessment(new, made.clock, id="a-new")], "ada")
            made.ran("r-new", about=new)
        decision = made.decide(about=one)
        assert decision.outcome == "allow", decision.reason
        yes = Approval(id=f"ok{i}", decision=decision.id, approver="bob", verdict="approve", at=made.clock.at)
        at = made.clock.later(hours=1)
        out = Deployment(
            id=f"d{i}", model=one.id, fingerprint=one.fingerprint, place="p", status="deployed", at=at
        )
        made.dossier.record([decision, yes, out], "bob")
    made.clock.later(days=1)
    made.ran("r-drift", about=new, recall=0.7)
    found = made.decide(about=new)
    assert found.outcome == "roll-back" and found.rollback_to == "guard"
    made.dossier.record(
        [Incident(id="i", title="t", model="guard", fingerprint=GUARD.fingerprint, aware_at=START)], "x"
    )
    nowhere = made.decide(about=new)
    assert nowhere.outcome == "roll-back" and nowhere.rollback_to == "" and "withdraw it" in nowhere.reason


def test_policies_are_read_strictly_and_the_example_is_one():
    assert len(parse_policy(example(), "example").thresholds()) == 3
    for text, said in (
        ("name = 'p'\n[require]\nform = []", "unknown key 'require.form'"),
        ("name = 'p'\n[[threshold]]\nmetric='recall'\nmin=0.1\nmax=0.2", "give min or max"),
        ("name = 'p'\n" + "[[threshold]]\nmetric='recall'\nmin=0.1\n" * 2, "two thresholds of one metric"),
        ("name = ", "not TOML"),
    ):
        with pytest.raises(ConfigError, match=said):
            parse_policy(text, "p.toml")
    empty = PolicyFile.model_validate({"name": "nothing"})
    assert empty.records()[-1].thresholds == []


def test_a_policy_without_thresholds_lets_nothing_out(life):
    assert "draws no threshold" in life(threshold=[]).ran().decide().reason
