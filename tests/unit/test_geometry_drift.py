import numpy as np
import pytest

from guardkeel.errors import DataError
from guardkeel.geometry import drift, drift_inside, random_basis

EVERY = np.arange


def test_drift_by_hand():
    x = np.array([[1.0, 0.0], [-1.0, 0.0]])
    moved = x + np.array([[0.0, 3.0], [0.0, 4.0]])
    assert drift(x, moved).value == pytest.approx(np.sqrt((9 + 16) / 2))
    inside = drift_inside(x, moved, [(EVERY(2), np.array([[0.0], [1.0]]))], draws=10)
    outside = drift_inside(x, moved, [(EVERY(2), np.array([[1.0], [0.0]]))], draws=10)
    assert inside.estimate.value == pytest.approx(1.0)
    assert outside.estimate.value == pytest.approx(0.0)
    assert inside.null_mean == 0.5
    half = drift_inside(
        x, moved, [(EVERY(1), np.array([[0.0], [1.0]])), (np.array([1]), np.array([[1.0], [0.0]]))]
    )
    assert half.estimate.value == pytest.approx(9 / 25)


def test_drift_ignores_where_the_cloud_is_and_how_large():
    r = np.random.default_rng(0)
    x = r.standard_normal((40, 10))
    moved = x + 0.3 * r.standard_normal((40, 10))
    a, b = drift(x, moved), drift(5 * x + 100, 5 * moved + 100)
    assert a.value == pytest.approx(b.value)
    assert a.low == pytest.approx(b.low)


def test_nothing_moved():
    x = np.random.default_rng(1).standard_normal((10, 4))
    same = drift(x, x)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    inside = drift_inside(x, x, [(EVERY(10), np.eye(4)[:, :2])])
    assert inside.estimate.value is None
    assert "nothing moved" in inside.estimate.note


@pytest.mark.parametrize("grouped", [False, True])
def test_interval_covers(grouped):
    hits = []
    groups = np.arange(120) // 3 if grouped else None
    for seed in range(200):
        r = np.random.default_rng(seed)
        x = r.standard_normal((120, 5))
        size = np.exp(0.4 * r.standard_normal(120))
        if grouped:
            size = size[groups]
        v = drift(x, x + size[:, None] * r.standard_normal((120, 5)), groups=groups, seed=seed)
        hits.append(v.low <= np.exp(0.16) <= v.high)  # E[size²] = exp(2·0.4²), variance of h is 1
    assert 0.85 < np.mean(hits) < 0.99  # a percentile bootstrap of 40 to 120 skewed values covers about 91%


@pytest.mark.parametrize(("n", "d"), [(30, 60), (80, 20)])
def test_change_without_direction_is_inside_as_by_chance(n, d):
    ps, values = [], []
    for seed in range(80):
        r = np.random.default_rng(seed)
        x = r.standard_normal((n, d))
        change = r.standard_normal((n, 3)) @ r.standard_normal((3, d))  # in few directions, not chosen ones
        m = drift_inside(x, x + change, [(EVERY(n), random_basis(d, 5, r))], draws=39, seed=seed)
        ps.append(m.p)
        values.append(m.estimate.value)
        assert m.null_mean == 5 / d
    assert 0.39 < np.mean(ps) < 0.64
    assert np.mean(np.array(ps) <= 0.05) <= 0.14
    assert abs(np.mean(values) - 5 / d) < 3.5 * np.std(values) / np.sqrt(80)


def test_change_in_the_subspace_is_seen():
    r = np.random.default_rng(2)
    x, basis = r.standard_normal((60, 100)), random_basis(100, 8, r)
    change = r.standard_normal((60, 8)) @ basis.T + 0.1 * r.standard_normal((60, 100))
    m = drift_inside(x, x + change, [(EVERY(60), basis)])
    assert m.p == pytest.approx(1 / 101)
    assert m.null_high < 0.2
    assert 0.8 < m.estimate.low < m.estimate.value < m.estimate.high < 1


def test_what_cannot_be_measured():
    x = np.random.default_rng(3).standard_normal((6, 4))
    flat = drift(np.full((6, 4), 0.1), x)
    assert flat.value is None
    assert "do not vary" in flat.note
    with pytest.raises(ValueError, match=r"\(6, 4\) and \(6, 3\)"):
        drift(x, x[:, :3])
    with pytest.raises(DataError, match="candidate activations: 6 of 6"):
        drift(x, x * np.nan)
    with pytest.raises(ValueError, match="cover each of 6 items once"):
        drift_inside(x, x + 1, [(EVERY(5), np.eye(4))])
