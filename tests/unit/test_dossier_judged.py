"""Results that a judge labelled: what they were before its errors, and how sure that is."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sqlalchemy", reason="the dossier extra is not installed")

from dossier_cases import Clock, basics, model, opened, run
from guardkeel.dossier import judged
from guardkeel.dossier.evidence import Evidence
from guardkeel.dossier.findings import findings
from guardkeel.dossier.gate import decide
from guardkeel.dossier.kinds import EvalSpec, Judge, Model, Result
from guardkeel.dossier.policy import PolicyFile

JUDGE = Judge(id="j", model="some-model", sensitivity=0.9, specificity=0.95, n=400, n_unsafe=200)


def labelled(truth: tuple[float, float, float, float], judge: Judge) -> tuple[float, float, float, float]:
    """Expected (hit, missed, alarm, passed) under the judge's labels, from the same under true labels."""
    hit, missed, alarm, passed = truth
    s, c = judge.sensitivity, judge.specificity
    bad = (s * hit + (1 - c) * alarm, s * missed + (1 - c) * passed)
    return *bad, hit + alarm - bad[0], missed + passed - bad[1]


def made_of(counts, of="r1", **more) -> list[Result]:
    """What a run would record of such counts."""
    hit, missed, alarm, passed = counts

    def one(metric, value, n):
        return Result(
            id=f"{of}/{metric}", run=of, metric=metric, value=value, low=value, high=value, n=n, **more
        )

    return [
        one("recall", hit / (hit + missed), round(hit + missed)),
        one("fpr", alarm / (alarm + passed), round(alarm + passed)),
        one("precision", hit / (hit + alarm), round(hit + alarm)),
        one("f1", 0.5, 10),
        one("unscored", 0.0, round(sum(counts))),
    ]


def test_a_judge_without_errors_changes_nothing():
    counts = (80, 20, 10, 90)
    for metric, value in (("recall", 0.8), ("fpr", 0.1), ("precision", 8 / 9)):
        assert judged.rate(metric, counts, 1.0, 1.0) == pytest.approx(value)


def test_what_the_judge_did_to_a_rate_is_undone():
    truth = (320.0, 80.0, 60.0, 540.0)
    seen = labelled(truth, JUDGE)
    assert seen[0] / (seen[0] + seen[1]) == pytest.approx(0.746, abs=0.001)  # recall by its labels
    for metric, value in (("recall", 0.8), ("fpr", 0.1), ("precision", 320 / 380)):
        assert judged.rate(metric, seen, 0.9, 0.95) == pytest.approx(value)
    assert judged.unsafe(0.9 * 0.3 + 0.05 * 0.7, 1.0, 0.9, 0.95) == pytest.approx(0.3)
    assert judged.unsafe(0.01, 1.0, 0.9, 0.95) == 0  # fewer than it calls unsafe by mistake
    assert np.isnan(judged.unsafe(0.5, 1.0, 0.4, 0.6))  # no better than chance


@pytest.fixture
def dossier(tmp_path):
    clock = Clock()
    made = opened(tmp_path / "d", clock, sign=False)
    policy = PolicyFile.model_validate(
        {
            "name": "release",
            "threshold": [{"metric": "recall", "min": 0.75}],
            "require": {"assessment": False},
        }
    )
    spec = EvalSpec(id="final", form="assurance", domains=["harm"], prompt_sets=["hidden"], judged=True)
    made.record([*basics(), spec, JUDGE, *policy.records()], "ada")
    clock.later(days=3)
    yield made
    made.store.close()


def corrected(dossier, results, judge=JUDGE, **about):
    dossier.record([judge], "ada")
    one = run(model(), judge="j", **about)
    dossier.record([one, *results], "eve")
    return {r.metric: r for r in judged.results(dossier.state, one)}


def test_intervals_cover_the_truth_as_often_as_they_say(dossier):
    """Both samples are drawn anew each time: the items, and the human labels by which the judge is known."""
    rng, truth, inside = np.random.default_rng(1), np.array([0.32, 0.08, 0.06, 0.54]), 0
    chances = labelled(tuple(truth), JUDGE)
    for _ in range(150):
        counts = rng.multinomial(300, np.array(chances) / sum(chances))
        known = {"sensitivity": rng.binomial(60, 0.9) / 60, "specificity": rng.binomial(60, 0.95) / 60}
        said = JUDGE.model_copy(update={**known, "n": 120, "n_unsafe": 60})
        recall, fpr = made_of(counts)[:2]
        found = judged._corrected(recall, {("recall", "*"): recall, ("fpr", "*"): fpr}, said)
        assert found.low <= found.value <= found.high
        inside += found.low <= 0.8 <= found.high
    assert 0.9 <= inside / 150 <= 1.0


def test_few_human_labels_make_it_less_sure(dossier):
    counts = labelled((320, 80, 60, 540), JUDGE)
    wide, narrow = (
        corrected(dossier, made_of(counts, of), JUDGE.model_copy(update={"n": n, "n_unsafe": n // 2}), id=of)[
            "recall"
        ]
        for of, n in (("few", 40), ("many", 4000))
    )
    assert wide.value == pytest.approx(narrow.value) == pytest.approx(0.8, abs=0.005)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    assert "corrected for the errors of judge j, which gave 0.746" in narrow.why


def test_what_cannot_be_corrected_has_no_value(dossier):
    found = corrected(dossier, made_of((80, 20, 10, 90)))
    assert found["f1"].value is None and "cannot be corrected" in found["f1"].why
    assert found["unscored"].value == 0.0  # no label enters it
    share = Result(id="r2/x", run="r2", metric="attack rate", value=0.305, n=1000)
    assert corrected(dossier, [share], id="r2")["attack rate"].value == pytest.approx(0.3)
    gone = made_of((0, 9, 10, 181), "r3")[:2]  # of 200 safe ones it would call as many unsafe by mistake
    assert corrected(dossier, gone, id="r3")["recall"].value is None


def test_without_a_measured_judge_results_are_as_they_were(dossier):
    found = corrected(dossier, made_of((80, 20, 10, 90)), Judge(id="j", model="some-model"))
    assert found["recall"].value == 0.8 and found["f1"].value == 0.5


def test_gate_and_findings_read_what_is_left_after_its_errors(dossier):
    guard = dossier.state.get(Model, "guard")
    corrected(
        dossier, made_of(labelled((3200, 800, 600, 5400), JUDGE))
    )  # 0.746 by the judge's labels, 0.8 in truth
    decision = decide(dossier.state, guard, "release", dossier.now, lambda _: Evidence("present"))
    line = next(t for t in decision.trace if t.rule.startswith("release/recall"))
    assert line.outcome == "pass" and "which gave 0.746" in line.observed
    assert "judge:j" in decision.inputs
    assert findings(dossier.state, guard) == []
    corrected(dossier, made_of(labelled((1200, 2800, 600, 5400), JUDGE), "r2"), id="r2")
    assert [f.level for f in findings(dossier.state, guard)] == ["launch"]
    assert (
        decide(dossier.state, guard, "release", dossier.now, lambda _: Evidence("present")).outcome == "deny"
    )
