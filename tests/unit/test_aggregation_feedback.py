"""Partial and one-sided feedback: what learns from it honestly, and what the estimates say."""

import numpy as np
import pytest

from guardkeel.errors import ConfigError
from guardkeel.moderation.aggregation import (
    Aggregator,
    AuditPolicy,
    Feedback,
    FixedShare,
    estimate_regret,
)

SERVED = 1500
FLOOR = 0.1


def served_stream(seed):
    """A strict and a permissive expert; strict is right: half the traffic is harmful, permissive misses most of it."""
    rng = np.random.default_rng(seed)
    unsafe = rng.random(SERVED) < 0.5
    strict = np.where(unsafe, 0.85, np.where(rng.random(SERVED) < 0.25, 0.95, 0.1))
    permissive = np.where(unsafe & (rng.random(SERVED) < 0.3), 0.8, 0.15)
    return np.column_stack((strict, permissive)), unsafe, rng


def serve(seed, audits):
    """Serve the stream; blocked innocents appeal, and with `audits` a random sample is reviewed.

    Gives the share of harm that is caught in the last third, for each item with feedback (ensemble's loss, experts'
    losses, q), and the true regret.
    """
    advice, unsafe, rng = served_stream(seed)
    policy = AuditPolicy(floor=FLOOR, flagged=0.2, allowed=0.1, focus=0.2)
    learner = Aggregator(
        ("strict", "permissive"), FixedShare(0.5, 0.01), floor=FLOOR, unsolicited=0.0 if audits else 1.0
    )
    seen, true, caught = [], [], []
    for t in range(SERVED):
        mixture = learner.predict(advice[t])
        q = policy.propensity(mixture)
        own, other = learner.loss_of(mixture, bool(unsafe[t])), learner.losses(advice[t], bool(unsafe[t]))
        true.append(own - other)
        caught.append(mixture.flagged)
        drawn = audits and policy.drawn(q, rng.random())
        appealed = mixture.flagged and not unsafe[t] and rng.random() < 0.8
        if drawn or appealed:
            learner.learn(Feedback(t, tuple(advice[t]), bool(unsafe[t]), q if drawn else None))
            seen.append((own, other, q if drawn else np.nan))
    late = unsafe & (np.arange(SERVED) > 2 * SERVED / 3)
    return np.mean(np.array(caught)[late]), seen, np.sum(true, axis=0)


def test_appeals_alone_make_the_ensemble_permissive_and_audits_do_not():
    naive, _, _ = serve(1, audits=False)
    honest, _, _ = serve(1, audits=True)
    assert naive < 0.4  # down to what the permissive expert catches by itself
    assert honest > 0.95


def test_the_estimate_from_audits_covers_the_truth_and_the_naive_one_does_not():
    _, seen, true = serve(2, audits=True)
    own, other, q = (np.array(x) for x in zip(*seen, strict=True))
    for method in ("weighted", "self-normalised"):
        found = estimate_regret(own, other, q, SERVED, method=method)
        for k in range(2):
            assert found.experts[k].low <= true[k] <= found.experts[k].high
        assert found.best.low <= true.max() <= found.best.high
        assert found.experts[0].n == np.isfinite(q).sum() < len(seen)
        # appeals come from those whom the strict expert blocks: the naive estimate makes the ensemble far worse
        # than the permissive expert, which it is not
        assert true[1] < 0 < found.naive[1]
        assert not found.experts[1].low <= found.naive[1] <= found.experts[1].high


@pytest.mark.parametrize("method", ["weighted", "self-normalised"])
def test_intervals_cover_as_often_as_they_say(method):
    rng = np.random.default_rng(5)
    own, other = rng.random(2000), rng.random((2000, 3))
    q = rng.uniform(0.1, 0.6, 2000) * (0.5 + own / 2)
    truth = (own[:, None] - other).sum(axis=0)
    hits, best, values = [], [], []
    for _ in range(400):
        drawn = rng.random(2000) < q
        found = estimate_regret(own[drawn], other[drawn], q[drawn], 2000, method=method)
        hits.append([i.low <= t <= i.high for i, t in zip(found.experts, truth, strict=True)])
        best.append(found.best.low <= truth.max() <= found.best.high)
        values.append([i.value for i in found.experts])
    assert 0.92 <= np.mean(hits) <= 0.975
    assert np.mean(best) >= 0.94
    error = np.std(values, axis=0) / np.sqrt(400)
    assert (np.abs(np.mean(values, axis=0) - truth) < 4 * error + (0 if method == "weighted" else 5)).all()


def test_full_feedback_is_known_without_an_interval():
    own, other = np.array([0.5, 0.25, np.nan]), np.array([[0.0, 1.0], [0.25, np.nan], [np.nan, np.nan]])
    found = estimate_regret(own, other, np.ones(3), 3)
    assert [(i.value, i.low, i.high) for i in found.experts] == [(0.5, 0.5, 0.5), (-0.5, -0.5, -0.5)]
    assert (found.best.value, found.experts[0].effective) == (0.5, 3)
    assert found.naive == pytest.approx((0.5, -0.5))


def test_by_hand():
    found = estimate_regret([0.6, 0.2], [[0.1], [0.0]], [0.5, 0.25], 10, method="weighted")
    assert found.experts[0].value == pytest.approx(0.5 / 0.5 + 0.2 / 0.25)
    half = 1.959964 * np.sqrt(0.5 * 1.0**2 + 0.75 * 0.8**2)
    assert found.experts[0].high - found.experts[0].value == pytest.approx(half, rel=1e-6)
    assert found.experts[0].effective == pytest.approx(36 / 20)
    ratio = estimate_regret([0.6, 0.2], [[0.1], [0.0]], [0.5, 0.25], 10)
    assert ratio.experts[0].value == pytest.approx(10 * 1.8 / 6)
    assert ratio.naive == pytest.approx((3.5,))


def test_nothing_audited_is_nothing_known():
    found = estimate_regret([0.5], [[0.1]], [np.nan], 100)
    assert np.isnan(found.best.value)
    assert found.best.n == 0
    assert found.naive == pytest.approx((40,))
    assert np.isnan(estimate_regret([], np.zeros((0, 2)), [], 100).naive).all()


def test_arrays_that_do_not_fit():
    with pytest.raises(ValueError, match="shapes"):
        estimate_regret([0.5], [[0.1], [0.2]], [1.0], 10)
    with pytest.raises(ValueError, match="1 items served, 2 audited"):
        estimate_regret([0.5, 0.5], [[0.1], [0.2]], [1.0, 1.0], 1)


def test_what_the_policy_audits():
    learner = Aggregator(("a", "b"), FixedShare())
    policy = AuditPolicy(floor=0.02, flagged=0.5, allowed=0.0, focus=0.3)
    agreed, split, blocked, unscored = (
        policy.propensity(learner.predict(advice))
        for advice in ((0.1, 0.1), (0.0, 0.9), (0.9, 0.9), (None, None))
    )
    assert agreed == 0.02
    assert split == pytest.approx(0.3 * 0.9)
    assert (blocked, unscored) == (0.5, 0.5)
    assert policy.drawn(0.5, 0.49)
    assert not policy.drawn(0.5, 0.5)
    with pytest.raises(ConfigError, match="floor is 0"):
        AuditPolicy(floor=0)
