import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from guardkeel.evaluation import intervals, paired
from guardkeel.evaluation.behaviour import measure
from guardkeel.evaluation.compare import compare
from guardkeel.evaluation.gate import decide
from guardkeel.evaluation.items import ItemMeta
from guardkeel.evaluation.policy import Policy
from guardkeel.evaluation.ranking import placements
from guardkeel.evaluation.recalibration import matched_threshold
from guardkeel.results import AuditResults, GuardInfo, GuardResult

few = settings(max_examples=60, deadline=None)
fewer = settings(max_examples=25, deadline=None)
score = st.one_of(st.just(math.nan), st.integers(0, 8).map(lambda k: k / 8))
metrics = ("recall", "fpr", "precision", "f1", "auroc", "auprc", "ece", "unscored")


@st.composite
def counts(draw):
    n = draw(st.integers(1, 200))
    worse = draw(st.integers(0, n))
    return worse, draw(st.integers(0, n - worse)), n


@few
@given(counts())
def test_the_score_is_odd_and_falls(table):
    worse, better, n = table
    grid = np.linspace(-0.99, 0.99, 41)
    z = [paired.tango_z(worse, better, n, d) for d in grid]
    assert all(a >= b - 1e-7 for a, b in pairwise(z))
    mirrored = [-paired.tango_z(better, worse, n, -d) for d in grid]
    np.testing.assert_allclose(z, mirrored, atol=1e-6)


@few
@given(counts(), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_tango_interval_holds_the_estimate_and_agrees_with_its_test(table, confidence):
    worse, better, n = table
    low, high = paired.tango_interval(worse, better, n, confidence)
    assert -1 <= low <= (worse - better) / n <= high <= 1
    assert low < high
    mirrored = paired.tango_interval(better, worse, n, confidence)
    assert (low, high) == pytest.approx((-mirrored[1], -mirrored[0]), abs=1e-8)
    for margin in (0.01, 0.05, 0.3):
        if abs(high - margin) > 1e-6:
            p = paired.noninferiority_p(worse, better, n, margin)
            assert (p <= (1 - confidence) / 2) == (high < margin)


@few
@given(counts(), st.data())
def test_newcombe_interval_holds_the_estimate(table, data):
    worse, better, n = table
    both = data.draw(st.integers(0, n - worse - better))
    low, high = paired.newcombe_interval(both, worse, better, n - worse - better - both)
    assert -1 - 1e-9 <= low <= (worse - better) / n + 1e-12
    assert (worse - better) / n - 1e-12 <= high <= 1 + 1e-9


@few
@given(counts())
def test_more_harm_never_looks_safer(table):
    worse, better, n = table
    assume(worse + better < n)
    p = paired.noninferiority_p(worse, better, n, 0.05)
    assert paired.noninferiority_p(worse + 1, better, n, 0.05) >= p - 1e-12
    assert paired.harm_p(worse + 1, better) <= paired.harm_p(worse, better) + 1e-12
    assert 0 < paired.mcnemar_exact(worse, better) <= 1


@few
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_adjusts_upwards_and_keeps_the_order(ps):
    adjusted = paired.holm(ps)
    assert all(p <= a <= 1 for p, a in zip(ps, adjusted, strict=True))
    ranked = sorted(range(len(ps)), key=lambda i: ps[i])
    assert all(adjusted[i] <= adjusted[j] for i, j in pairwise(ranked))


@few
@given(st.integers(1, 500), st.data(), st.sampled_from([0.8, 0.95, 0.999]))
def test_wilson_holds_the_share_and_is_symmetric(n, data, confidence):
    x = data.draw(st.integers(0, n))
    low, high = intervals.wilson(x, n, confidence)
    assert 0 <= low <= x / n <= high <= 1
    assert low < high
    assert (1 - high, 1 - low) == pytest.approx(intervals.wilson(n - x, n, confidence))


@few
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40))
def test_placements_are_those_of_all_pairs(rows):
    scores, unsafe = np.array([float(s) for s, _ in rows]), np.array([u for _, u in rows])
    assume(unsafe.any() and not unsafe.all())
    p, n = scores[unsafe][:, None], scores[~unsafe][None, :]
    kernel = (p > n) + 0.5 * (p == n)
    above, below = placements(scores, unsafe)
    np.testing.assert_allclose(above, kernel.mean(axis=1), atol=1e-12)
    np.testing.assert_allclose(below, kernel.mean(axis=0), atol=1e-12)


@few
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=40))
def test_the_matched_threshold_is_the_lowest_that_flags_no_more(rows):
    safe, flagged = np.array([s / 10 for s, _ in rows]), np.array([f for _, f in rows])
    threshold = matched_threshold(flagged, safe)
    assert (safe >= threshold).sum() <= flagged.sum()
    below = safe[safe < threshold]
    if below.size:
        assert (safe >= below.max()).sum() > flagged.sum()


@few
@given(st.lists(st.tuples(score, st.booleans()), max_size=60), st.randoms(use_true_random=False))
def test_behaviour_is_sound_whatever_the_input(rows, random):
    scores, unsafe = np.array([s for s, _ in rows], dtype=float), np.array([u for _, u in rows], dtype=bool)
    b = measure(scores, unsafe, 0.5, draws=30)
    for name in metrics:
        e = getattr(b, name)
        if e.value is None:
            assert e.note
            assert e.low is e.high is None
        else:
            assert 0 <= e.low <= e.value <= e.high <= 1
            assert e.low < e.high
            assert e.n > 0
    assert b.n_unscored == int(np.isnan(scores).sum())
    order = random.sample(range(len(rows)), len(rows))
    again = measure(scores[order], unsafe[order], 0.5, draws=30)
    for name in metrics:
        value = getattr(b, name).value
        assert getattr(again, name).value == (None if value is None else pytest.approx(value))


@fewer
@given(st.lists(st.tuples(score, score, st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_a_comparison_is_odd_and_its_words_agree_with_its_numbers(rows):
    items = [
        ItemMeta(f"{'ab'[s]}/{k}#prompt", "ab"[s], "prompt", "unsafe" if u else "safe")
        for k, (_, _, u, s) in enumerate(rows)
    ]
    one, two = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    there = compare(items, one, two, 0.5, 0.5, draws=10)
    back = compare(items, two, one, 0.5, 0.5, draws=10)
    for t, r in zip(there.tests, back.tests, strict=True):
        assert (t.worse, t.better, t.n) == (r.better, r.worse, r.n)
        assert (t.outcome == "not measured") == (t.n == 0) == (t.p is None)
        if t.n:
            assert t.difference.value == pytest.approx(-r.difference.value)
            assert t.difference.low <= t.difference.value <= t.difference.high
            assert t.p <= t.p_holm
            assert (t.outcome == "non-inferior") == (t.p_holm <= 0.05)
            assert t.candidate - t.reference == pytest.approx(t.difference.value)
    assert len(there.flips) == len(back.flips)
    for r in there.recalibration:
        if r.lost_to_ranking.value is not None:
            lost = r.recall_reference.value - r.recall_shipped.value
            # rates over the items that both scored
            assert r.lost_to_ranking.value + r.lost_to_operating_point.value == pytest.approx(lost)


@fewer
@given(st.lists(st.tuples(score, score, st.booleans()), min_size=1, max_size=40))
def test_small_or_unscored_evidence_is_never_allowed(rows):
    """Forty items cannot support the default margins, whatever the verdicts."""
    info = GuardInfo(
        name="g", reference="path:g", family="f", threshold=0.5, digest="", parameters=1, dtype="", device=""
    )
    items = [
        ItemMeta(f"a/{k}#prompt", "a", "prompt", "unsafe" if u else "safe")
        for k, (_, _, u) in enumerate(rows)
    ]
    unsafe = [i.unsafe for i in items]
    guards = [
        GuardResult(info=info, overall=measure([r[k] for r in rows], unsafe, 0.5, draws=10), slices=[])
        for k in (0, 1)
    ]
    results = AuditResults(
        suites=[],
        reference=guards[0],
        candidate=guards[1],
        comparison=compare(items, [r[0] for r in rows], [r[1] for r in rows], 0.5, 0.5, draws=10),
    )
    decision = decide(results, Policy())
    assert decision.decision in ("hold", "deny")
    assert all(r.outcome != "pass" or r.n > 0 for r in decision.rules)
