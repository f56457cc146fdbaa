import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkeel.geometry import (
    cka,
    measure_layer,
    overlap,
    principal_angles,
    probe,
    random_basis,
    random_overlaps,
    safety_basis,
    separability,
)
from guardkeel.geometry.rankone import leading_eigenvectors
from guardkeel.geometry.resampling import permutations, stratified_folds

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def cloud(seed, n, d):
    r = np.random.default_rng(seed)
    x = r.standard_normal((n, d)) * 10.0 ** r.uniform(-2, 2, size=d) + r.standard_normal(d)
    return x, r.permutation(np.arange(n) % 2 == 0), r


@few
@given(seeds, st.integers(4, 40), st.integers(1, 40), st.integers(1, 40))
def test_bases_are_orthonormal(seed, n, d, rank):
    x, y, _ = cloud(seed, n, d)
    u = safety_basis(x, y, rank)
    assert u.shape[0] == d
    assert 1 <= u.shape[1] <= min(rank, d, n)
    np.testing.assert_allclose(u.T @ u, np.eye(u.shape[1]), atol=1e-10)


@few
@given(seeds, st.integers(5, 30), st.integers(2, 30), st.floats(0.01, 100))
def test_cka_is_symmetric_bounded_and_blind_to_rotation_scale_shift_and_order(seed, n, d, scale):
    r = np.random.default_rng(seed)
    x, y = r.standard_normal((n, d)), r.standard_normal((n, 3))
    q = np.linalg.qr(r.standard_normal((d, d)))[0]
    order = r.permutation(n)
    value = cka(x, y, draws=0).estimate.value
    assert -1 <= value <= 1 + 1e-12
    for other in (cka(y, x, draws=0), cka(scale * x @ q + 3, -y, draws=0), cka(x[order], y[order], draws=0)):
        assert other.estimate.value == pytest.approx(value, abs=1e-7)
    e = cka(x, y, draws=0).estimate
    if e.low is not None:
        assert -1 <= e.low <= e.value + 1e-12
        assert e.value - 1e-12 <= e.high <= 1


@few
@given(seeds, st.integers(2, 20), st.data())
def test_angles_are_symmetric_and_agree_with_overlap(seed, d, data):
    k1, k2 = data.draw(st.integers(1, d)), data.draw(st.integers(1, d))
    r = np.random.default_rng(seed)
    u, v = random_basis(d, k1, r), random_basis(d, k2, r)
    angles = principal_angles(u, v)
    assert angles.shape == (min(k1, k2),)
    assert (angles >= 0).all()
    assert (angles <= 90).all()
    np.testing.assert_allclose(angles, principal_angles(v, u), atol=1e-6)
    assert np.mean(np.cos(np.radians(angles)) ** 2) == pytest.approx(overlap(u, v), abs=1e-9)
    null = random_overlaps(d, k1, k2, 5, r)
    assert (null > -1e-9).all()
    assert (null < 1 + 1e-6).all()


@few
@given(seeds, st.integers(3, 30), st.floats(-3, 6), st.data())
def test_leading_eigenvectors_span_what_eigh_finds(seed, size, log_c, data):
    k = data.draw(st.integers(1, size))
    r = np.random.default_rng(seed)
    values = np.sort(10.0 ** r.uniform(-6, 2, size=size))[::-1]
    z = r.standard_normal((2, size)) * np.sqrt(values)
    for d, w in enumerate(leading_eigenvectors(values, z, 10.0**log_c, k)):
        matrix = np.diag(values) + 10.0**log_c * np.outer(z[d], z[d])
        np.testing.assert_allclose(w.T @ w, np.eye(k), atol=1e-6)
        # The largest trace that k orthonormal directions can have.
        assert np.trace(w.T @ matrix @ w) == pytest.approx(np.linalg.eigvalsh(matrix)[-k:].sum(), rel=1e-9)


@few
@given(seeds, st.integers(4, 60), st.integers(1, 20), st.integers(1, 4))
def test_permutations_respect_strata_and_groups(seed, n, n_groups, n_folds):
    r = np.random.default_rng(seed)
    groups = np.unique(r.integers(n_groups, size=n), return_inverse=True)[1]
    y = r.random(n) < 0.5
    folds = stratified_folds(y, groups, n_folds, r)
    for p in permutations(groups, folds, 4, r):
        assert sorted(p) == list(range(n))
        np.testing.assert_array_equal(folds[p], folds)
        # Items of one group come from one group of the same size.
        for g in range(groups.max() + 1):
            source = np.unique(groups[p[groups == g]])
            assert source.size == 1
            assert np.sum(groups == source[0]) == np.sum(groups == g)


@few
@given(seeds, st.integers(24, 40), st.integers(1, 30))
def test_separability_and_probe_are_blind_to_rotation_and_scale(seed, n, d):
    r = np.random.default_rng(seed)
    x, y = r.standard_normal((n, d)), np.arange(n) % 2 == 0
    q = np.linalg.qr(r.standard_normal((d, d)))[0]
    turned = 0.3 * x @ q + 5
    for measure in (lambda a: separability(a, y, rank=3, draws=5), lambda a: probe(a, y, draws=5)):
        one, two = measure(x), measure(turned)
        assert one.estimate.value == pytest.approx(two.estimate.value, abs=1e-6)
        assert one.p == two.p


@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(1, 30), st.integers(1, 12), st.integers(1, 8), st.integers(1, 30))
def test_a_layer_is_measured_or_said_not_to_be(seed, n, d, rank, n_groups):
    r = np.random.default_rng(seed)
    x = np.round(r.standard_normal((n, d)))  # many ties
    x2 = x * r.integers(0, 2, size=d)
    groups = r.integers(n_groups, size=n)
    m = measure_layer(1, x, x2, r.random(n) < 0.5, rank=rank, draws=3, groups=groups)
    measures = (
        m.separability_reference,
        m.separability_candidate,
        m.probe_reference,
        m.probe_candidate,
        m.cka,
    )
    for e in [*(v.estimate for v in measures), m.overlap.estimate, m.drift, m.drift_inside.estimate]:
        assert e.value is not None or e.note
        assert all(v is None or np.isfinite(v) for v in (e.value, e.low, e.high))
        if e.low is not None:
            assert e.low <= e.value + 1e-9
            assert e.value <= e.high + 1e-9
