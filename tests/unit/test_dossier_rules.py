"""Rules that bite: each is broken here, and the refusal names the record and the remedy."""

from __future__ import annotations

from datetime import timedelta

import pytest

pytest.importorskip("sqlalchemy", reason="the dossier extra is not installed")
pytest.importorskip("cryptography", reason="the dossier extra is not installed")

from dossier_cases import (
    START,
    Clock,
    assessment,
    basics,
    digest,
    model,
    opened,
    prompts,
    results,
    run,
    threshold,
)
from guardkeel.dossier import dsse
from guardkeel.dossier.evidence import Evidence
from guardkeel.dossier.gate import decide
from guardkeel.dossier.kinds import (
    Approval,
    Comparison,
    Deployment,
    EvalSpec,
    Evaluator,
    Exposure,
    Finding,
    GateDecision,
    Incident,
    Mitigation,
    Model,
    Opening,
    Person,
    Policy,
    PromptSet,
    Result,
    Run,
    Waiver,
    parse,
)
from guardkeel.dossier.policy import PolicyFile
from guardkeel.dossier.rules import APPROVAL, RuleError, approval_payload, comparable
from guardkeel.errors import DataError

GUARD = model()


def present(_):
    return Evidence("present")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def dossier(tmp_path, clock):
    with opened(tmp_path / "d", clock) as made:
        made.record(basics(), "ada")
        clock.later(days=2)
        yield made


def refused(dossier, *records, by="ada"):
    before = dossier.state.last
    with pytest.raises(RuleError) as caught:
        dossier.record(records, by)
    assert dossier.refresh().last == before, "a refusal leaves nothing"
    assert caught.value.remedy
    return str(caught.value)


def policy(**more):
    return PolicyFile.model_validate(
        {
            "name": "release",
            "threshold": [{"metric": "recall", "min": 0.9}],
            "require": {"audits": False},
            **more,
        }
    )


def decided(dossier, clock, recall=0.95, name="r1"):
    """A decision on the guard, with everything that it needs."""
    dossier.record(
        [
            run(GUARD, name, started_at=clock() - timedelta(hours=1), finished_at=clock()),
            *results(name, recall),
        ],
        "eve",
    )
    dossier.record([assessment(GUARD, clock)], "ada")
    decision = decide(dossier.state, GUARD, "release", clock(), present)
    dossier.record([decision], "ada")
    return decision


def test_a_dossier_is_opened_once(dossier):
    assert "opened once" in refused(dossier, Opening(id="again", title="t"))


def test_what_a_record_names_must_be_there(dossier):
    said = refused(dossier, run(GUARD, spec="nowhere"))
    assert (
        "names the eval-spec 'nowhere', which is not in the dossier" in said
        and "register the eval-spec first" in said
    )


def test_an_assurance_run_refuses_an_exposed_prompt_set(dossier, clock):
    seen = Exposure(
        id="seen", prompt_set="hidden", digest=digest("hidden 1"), to="training", at=START, how="mixed in"
    )
    dossier.record([seen], "ada")
    said = refused(dossier, run(GUARD))
    assert "exposed to training on 2026-03-01 (exposure 'seen')" in said and "development spec" in said
    dossier.record([run(GUARD, spec="daily")], "ada")  # for development it may be used
    dossier.record([prompts("2"), run(GUARD, "r2", version="2")], "ada")  # another version was not seen


def test_an_assurance_run_refuses_a_set_that_nobody_held_out(dossier):
    dossier.record([prompts(held_out=False)], "ada")
    assert "which is not held out" in refused(dossier, run(GUARD))
    assert "cannot be now" in refused(dossier, prompts())


def test_a_development_run_uses_a_prompt_set_up(dossier):
    dossier.record([run(GUARD, "dev", spec="daily", evaluator="team")], "ada")
    assert "exposed to development on 2026-03-02 (exposure 'run dev')" in refused(dossier, run(GUARD))


def test_an_assurance_run_refuses_evaluators_from_within(dossier):
    assert "evaluator 'team', who is not independent of development" in refused(
        dossier, run(GUARD, evaluator="team")
    )
    dossier.record(
        [Evaluator(id="friends", party="third", independent_of_development=True, people=["tom"])], "ada"
    )
    assert "tom of evaluator 'friends' made model 'guard'" in refused(
        dossier, run(GUARD, evaluator="friends")
    )


def test_what_a_run_was_is_not_changed_by_renaming_what_it_was_of(dossier):
    assert "cannot be now" in refused(
        dossier, Evaluator(id="team", party="first", independent_of_development=True)
    )
    dossier.record([run(GUARD, "dev", spec="daily", evaluator="team")], "ada")
    spec = dossier.state.get(EvalSpec, "daily").model_copy(update={"form": "assurance"})
    assert "cannot become runs of form assurance" in refused(dossier, spec)


def test_who_made_an_ancestor_made_the_model(dossier):
    child = model("child", trainers=["bob"], parents=[{"digest": GUARD.digest, "relation": "fine-tune"}])
    dossier.record(
        [child, Evaluator(id="tomlab", party="third", independent_of_development=True, people=["tom"])], "ada"
    )
    assert "tom of evaluator 'tomlab'" in refused(dossier, run(child, evaluator="tomlab"))


def test_a_run_is_of_the_registered_model_on_registered_sets(dossier):
    other = model(threshold=0.7)
    assert "is about another guard than the one in the dossier" in refused(dossier, run(other))
    assert "a version of prompt-set 'hidden' that is not registered" in refused(
        dossier, run(GUARD, version="9")
    )
    dossier.record(
        [parse("eval-spec", "both", {"form": "development", "prompt_sets": ["hidden"]}, "x")], "ada"
    )
    short = run(GUARD, spec="both").model_copy(update={"prompt_sets": []})
    assert "has not used hidden" in refused(dossier, short)
    assert "is in the future" in refused(
        dossier, run(GUARD, started_at=START + timedelta(days=9), finished_at=None)
    )
    assert "ended before it began" in refused(dossier, run(GUARD, finished_at=START))


def test_runs_are_never_replaced_and_results_come_with_their_run(dossier):
    dossier.record([run(GUARD), *results()], "eve")
    assert "never replaced" in refused(dossier, run(GUARD, tool="another"))
    assert "never replaced" in refused(dossier, *results(recall=0.99))
    dossier.record([run(GUARD, "r2")], "eve")
    late = Result(id="r1/extra", run="r1", metric="f1", value=1.0, n=3)
    assert "results are recorded with their run" in refused(dossier, late)
    silent = Result(id="r2/f1", run="r2", metric="f1", value=None, n=3)
    assert "does not say why" in refused(dossier, silent)


def test_an_errored_run_has_no_scores(dossier):
    said = refused(dossier, run(GUARD, status="errored", errors="out of memory"), *results())
    assert "errors are no scores" in said


def test_two_versions_of_a_prompt_set_are_not_compared(dossier):
    dossier.record([run(GUARD), prompts("2"), run(GUARD, "r2", version="2")], "eve")
    with pytest.raises(RuleError, match=r"prompt-set 'hidden' is 1 .* in one and 2 .* in the other"):
        comparable(dossier.state, "r1", "r2")
    said = {
        "metric": "recall",
        "n": 9,
        "worse": 1,
        "better": 0,
        "difference": -0.1,
        "margin": 0.05,
        "outcome": "x",
    }
    assert "cannot be compared" in refused(
        dossier, Comparison(id="c", reference="r1", candidate="r2", **said)
    )
    finding = Finding(
        id="f", model="guard", fingerprint=GUARD.fingerprint, run="r1", level="launch", what="low"
    )
    dossier.record([finding], "eve")
    assert "cannot be compared" in refused(
        dossier, Mitigation(id="m", finding="f", description="d", retest="r2")
    )


def test_a_finding_closes_by_a_retest_or_by_somebody_else(dossier):
    finding = Finding(id="f", model="guard", fingerprint=GUARD.fingerprint, level="launch", what="low")
    dossier.record([finding], "eve")
    assert "tested again" in refused(dossier, finding.model_copy(update={"status": "closed"}))
    accepted = finding.model_copy(update={"status": "accepted", "why": "rare", "by": ""})
    assert "made model 'guard'" in refused(dossier, accepted, by="tom")
    assert "without a reason" in refused(dossier, accepted.model_copy(update={"why": ""}))
    dossier.record([accepted], "eve")


def test_assessments_and_waivers_have_a_day_to_come(dossier, clock):
    assert "expires_at is past" in refused(dossier, assessment(GUARD, clock, expires_at=START))
    said = {
        "rule": "x",
        "model": "guard",
        "fingerprint": GUARD.fingerprint,
        "granted_by": "eve",
        "reason": "r",
    }
    assert "expired before it begins" in refused(dossier, Waiver(id="w", expires_at=START, **said))
    assert "no reason" in refused(
        dossier, Waiver(id="w", expires_at=clock.at + timedelta(1), **{**said, "reason": " "})
    )
    own = Waiver(id="w", expires_at=clock.at + timedelta(1), **{**said, "granted_by": "tom"})
    assert "granted by 'tom', who made model 'guard'" in refused(dossier, own)
    with pytest.raises(DataError, match="expires_at"):
        parse("waiver", "w", said, "x")
    with pytest.raises(DataError, match="no offset"):
        parse("waiver", "w", {**said, "expires_at": "2026-05-01T00:00:00"}, "x")


def test_who_trained_it_does_not_approve_it(dossier, clock):
    dossier.record(policy().records(), "ada")
    clock.later(days=1)
    decision = decided(dossier, clock)
    assert decision.outcome == "allow", decision.reason
    yes = {"decision": decision.id, "verdict": "approve", "at": clock.at}
    assert "approved by 'tom', who made model 'guard'" in refused(
        dossier, Approval(id="ok", approver="tom", **yes)
    )
    out = Deployment(
        id="d1", model="guard", fingerprint=GUARD.fingerprint, place="p", status="deployed", at=clock.at
    )
    assert "nobody has approved it" in refused(dossier, out)
    dossier.record([Approval(id="ok", approver="bob", **yes), out], "bob")
    assert [d.place for d in dossier.state.in_use(GUARD)] == ["p"]
    dossier.record([Approval(id="no", approver="eve", **{**yes, "verdict": "reject"})], "eve")
    assert "was rejected" in refused(dossier, out.model_copy(update={"id": "d2"}))


def test_a_held_decision_cannot_be_approved_nor_one_that_was_overtaken(dossier, clock):
    dossier.record(policy().records(), "ada")
    clock.later(days=1)
    held = decide(dossier.state, GUARD, "release", clock(), present)
    dossier.record([held], "ada")
    yes = {"approver": "bob", "verdict": "approve", "at": clock.at}
    assert "which nobody can approve" in refused(dossier, Approval(id="ok", decision=held.id, **yes))
    clock.later(hours=1)
    first = decided(dossier, clock)
    clock.later(hours=1)
    second = decide(dossier.state, GUARD, "release", clock(), present)
    dossier.record([second], "ada")
    assert "a later decision" in refused(dossier, Approval(id="ok", decision=first.id, **yes))
    dossier.record([model(threshold=0.6)], "ada")
    assert "the model has changed" in refused(dossier, Approval(id="ok", decision=second.id, **yes))


def test_a_decision_is_by_the_registered_policy(dossier, clock):
    dossier.record(policy().records(), "ada")
    clock.later(days=1)
    decision = decided(dossier, clock)
    dossier.record(policy(description="laxer").records(), "ada")
    again = decision.model_copy(update={"id": "other"})
    assert "another version of policy" in refused(dossier, again)


def test_a_person_with_a_key_signs_and_keeps_the_key(dossier, clock, tmp_path):
    key = dsse.private_key(dsse.new_key(tmp_path / "bob")[0])
    other = dsse.private_key(dsse.new_key(tmp_path / "eve")[0])
    dossier.record([Person(id="bob", public_key=dsse.pem(key.public_key())), *policy().records()], "ada")
    said = refused(dossier, Person(id="bob", public_key=dsse.pem(other.public_key())))
    assert "cannot be replaced" in said
    clock.later(days=1)
    decision = decided(dossier, clock)
    plain = Approval(id="ok", decision=decision.id, approver="bob", verdict="approve", at=clock.at)
    assert "not signed by it" in refused(dossier, plain)
    payload = approval_payload(dossier.state.stamped(GateDecision, decision.id).entry.hash, plain)

    def by(which, what=payload):
        return plain.model_copy(update={"signature": dsse.sign(APPROVAL, what, which)})

    with pytest.raises(Exception, match="no signature of it"):
        dossier.record([by(other)], "bob")
    assert "not signed by it" in refused(dossier, by(key, b"{}"))
    dossier.record([by(key)], "bob")


def test_trainers_cannot_be_left_out_later(dossier):
    assert "tom trained these weights" in refused(dossier, model(trainers=["bob"]))
    dossier.record([model(trainers=["tom", "bob"])], "ada")


def test_a_clock_of_an_incident_cannot_be_set_back(dossier, clock):
    said = {"title": "t", "model": "guard", "fingerprint": GUARD.fingerprint}
    dossier.record([Incident(id="i", aware_at=START, **said)], "eve")
    assert "cannot become later" in refused(
        dossier, Incident(id="i", aware_at=START + timedelta(hours=3), **said)
    )
    assert "in the future" in refused(
        dossier, Incident(id="j", aware_at=clock.at + timedelta(days=1), **said)
    )
    with pytest.raises(DataError, match="follow each other in time"):
        parse(
            "incident",
            "k",
            {**said, "occurred_at": "2026-03-02T00:00:00Z", "aware_at": "2026-03-01T00:00:00Z"},
            "x",
        )


def test_a_changed_model_re_opens_all_that_was_decided(dossier, clock):
    dossier.record(policy().records(), "ada")
    clock.later(days=1)
    decision = decided(dossier, clock)
    dossier.record(
        [Approval(id="ok", decision=decision.id, approver="bob", verdict="approve", at=clock.at)], "bob"
    )
    for changed in ({"digest": digest("new weights")}, {"base": digest("b")}, {"threshold": 0.4},
                    {"quantisation": "int8"}, {"guard_policy": digest("p")}):  # fmt: skip
        new = model(**changed)
        dossier.record([new], "ada")
        out = Deployment(
            id="x", model="guard", fingerprint=new.fingerprint, place="p", status="deployed", at=clock.at
        )
        assert "its fingerprint is another than that of decision" in refused(dossier, out)
        assert "is about another guard" in refused(dossier, assessment(GUARD, clock, id="a2"))
        found = decide(dossier.state, new, "release", clock(), present)
        assert found.outcome == "hold"
        why = {t.rule: t.reason for t in found.trace}
        assert "the assessment is open again" in why["assessment"]
        assert "earlier fingerprint" in why["form assurance"]


def test_kinds_refuse_unknown_keys_and_bad_values():
    for body, said in (({"colour": 1}, "unknown key 'colour'"), ({"party": "second"}, "party = 'second'")):
        with pytest.raises(DataError, match=said):
            parse("evaluator", "x", {"party": "first", "independent_of_development": True, **body}, "file")
    with pytest.raises(DataError, match="unknown kind"):
        parse("nothing", "x", {}, "file")
    assert isinstance(parse("policy", "p", {"digest": "0" * 64, "body": {}}, "x"), Policy)
    assert {type(k) for k in (GUARD, prompts(), threshold())} >= {Model, PromptSet}
    assert issubclass(Run, object)
