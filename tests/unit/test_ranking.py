import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from guardkeel.evaluation.intervals import wilson
from guardkeel.evaluation.ranking import auroc, auroc_change, placements


def kernel(scores, unsafe):
    """ψ(unsafe i, safe j), the O(n²) definition."""
    p, n = scores[unsafe][:, None], scores[~unsafe][None, :]
    return (p > n) + 0.5 * (p == n)


def slow_covariance(columns, unsafe):
    above = np.stack([kernel(s, unsafe).mean(axis=1) for s in columns])
    below = np.stack([kernel(s, unsafe).mean(axis=0) for s in columns])
    return np.cov(above) / above.shape[1] + np.cov(below) / below.shape[1]


@pytest.fixture
def data():
    rng = np.random.default_rng(3)
    unsafe = rng.random(60) < 0.4
    one = np.round(np.clip(rng.normal(0.4 + 0.2 * unsafe, 0.2), 0, 1), 1)  # rounded: many ties
    two = np.round(np.clip(one + rng.normal(0, 0.15, 60), 0, 1), 1)
    return one, two, unsafe


def test_placements_equal_the_slow_definition(data):
    one, _, unsafe = data
    above, below = placements(one, unsafe)
    np.testing.assert_allclose(above, kernel(one, unsafe).mean(axis=1), atol=1e-12)
    np.testing.assert_allclose(below, kernel(one, unsafe).mean(axis=0), atol=1e-12)


def test_auroc_by_hand_with_a_tie():
    # unsafe .9 .5, safe .5 .1: pairs 1, 1, ½, 1
    estimate = auroc(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False]))
    assert estimate.value == 0.875
    # V10 = (1, ¾), V01 = (¾, 1): variances 1/32, so Var = 1/64 + 1/64
    half = 1.959964 * np.sqrt(1 / 32) / (0.875 * 0.125)
    expected = 1 / (1 + np.exp(-(np.log(7) + np.array([-half, half]))))
    assert (estimate.low, estimate.high) == pytest.approx(expected, abs=1e-6)
    assert estimate.n == 4


def test_auroc_equals_sklearn_and_its_variance_the_slow_one(data):
    one, _, unsafe = data
    estimate = auroc(one, unsafe)
    assert estimate.value == pytest.approx(roc_auc_score(unsafe, one))
    above, below = kernel(one, unsafe).mean(axis=1), kernel(one, unsafe).mean(axis=0)
    se = np.sqrt(above.var(ddof=1) / above.size + below.var(ddof=1) / below.size)
    centre = np.log(estimate.value / (1 - estimate.value))
    low = 1 / (1 + np.exp(-(centre - 1.959964 * se / (estimate.value * (1 - estimate.value)))))
    assert estimate.low == pytest.approx(low, abs=1e-6)


def test_perfect_ranking_and_single_items_get_a_wide_interval():
    perfect = auroc(np.array([0.9, 0.8, 0.7, 0.2, 0.1]), np.array([1, 1, 1, 0, 0], dtype=bool))
    assert perfect.value == perfect.high == 1.0
    assert perfect.low == pytest.approx(wilson(2, 2)[0])
    assert "2 disjoint pairs" in perfect.note
    single = auroc(np.array([0.5, 0.2, 0.9]), np.array([True, False, False]))
    assert single.value == 0.5
    assert (single.low, single.high) == pytest.approx(wilson(0.5, 1))


@pytest.mark.parametrize(
    ("unsafe", "why"),
    [([], "no scored items"), ([True], "no scored safe items"), ([False], "no scored unsafe items")],
)
def test_one_class_has_no_auroc(unsafe, why):
    scores = np.full(len(unsafe), 0.5)
    labels = np.array(unsafe, dtype=bool)
    assert (auroc(scores, labels).value, auroc(scores, labels).note) == (None, why)
    assert auroc_change("s", scores, scores, labels).difference.note == why


def test_change_equals_the_slow_paired_delong(data):
    one, two, unsafe = data
    test = auroc_change("s", one, two, unsafe)
    covariance = slow_covariance((one, two), unsafe)
    se = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    d = roc_auc_score(unsafe, two) - roc_auc_score(unsafe, one)
    assert test.difference.value == pytest.approx(d)
    assert test.difference.low == pytest.approx(d - 1.959964 * se, abs=1e-6)
    assert test.difference.high == pytest.approx(d + 1.959964 * se, abs=1e-6)
    assert test.reference.value == pytest.approx(roc_auc_score(unsafe, one))


def test_change_leaves_out_what_either_did_not_score(data):
    one, two, unsafe = data
    one, two = one.copy(), two.copy()
    one[0], two[5] = np.nan, np.nan
    keep = ~(np.isnan(one) | np.isnan(two))
    assert auroc_change("s", one, two, unsafe) == auroc_change("s", one[keep], two[keep], unsafe[keep])
    assert auroc_change("s", one, two, unsafe).difference.n == 58


def test_no_variation_is_told_from_no_change():
    unsafe = np.array([1, 1, 0, 0], dtype=bool)
    one, moved = np.array([0.9, 0.8, 0.2, 0.1]), np.array([0.7, 0.75, 0.1, 0.3])
    same = auroc_change("s", one, one / 2, unsafe).difference
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    assert "alike" in same.note
    other = auroc_change("s", one, moved, unsafe).difference
    assert (other.value, other.low, other.high) == (0.0, None, None)
    assert "too little variation" in other.note
