import numpy as np
import pytest

from guardkeel.geometry.rankone import leading_eigenvectors


def check(values, z, c, k):
    found = leading_eigenvectors(values, z, c, k)
    assert found.shape == (len(z), values.size, k)
    for d in range(len(z)):
        matrix = np.diag(values) + c * np.outer(z[d], z[d])
        w = found[d]
        np.testing.assert_allclose(w.T @ w, np.eye(k), atol=1e-7)
        expected = np.linalg.eigvalsh(matrix)[::-1][:k]
        np.testing.assert_allclose(np.diag(w.T @ matrix @ w), expected, rtol=1e-9, atol=1e-9 * values[0])


def test_against_eigh():
    r = np.random.default_rng(0)
    for size, k, c in [(50, 8, 3.0), (50, 49, 0.01), (200, 32, 750.0), (5, 1, 1.0)]:
        values = np.sort(r.exponential(size=size) ** 2)[::-1]
        check(values, r.standard_normal((6, size)) * np.sqrt(values), c, k)


def test_steep_spectrum():
    r = np.random.default_rng(1)
    values = 10.0 ** -np.linspace(0, 9, 60)
    check(values, r.standard_normal((5, 60)) * np.sqrt(values), 20.0, 12)


@pytest.mark.parametrize("c", [1.0, 0.0, -1e-3])
def test_tied_values_and_vanishing_z(c):
    values = np.array([4.0, 4.0, 4.0, 2.0, 2.0, 1.0, 1.0])
    z = np.array([[1.0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0, 1], np.zeros(7), np.ones(7)])
    check(values, z, c, 3)
    check(values, z, c, 5)


def test_plain_way_takes_over_where_roots_give_no_orthonormal_columns(monkeypatch):
    import guardkeel.geometry.rankone as module

    monkeypatch.setattr(module, "_ORTHONORMAL", 0.0)  # nothing is good enough
    r = np.random.default_rng(2)
    check(np.sort(r.exponential(size=20))[::-1], r.standard_normal((3, 20)), 1.0, 4)


def test_keeping_everything_spans_everything():
    values = np.array([3.0, 2.0, 1.0])
    np.testing.assert_array_equal(leading_eigenvectors(values, np.ones((2, 3)), 1.0, 3), [np.eye(3)] * 2)
