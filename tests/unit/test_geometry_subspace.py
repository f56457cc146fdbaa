import numpy as np
import pytest

from guardkeel.errors import DataError
from guardkeel.geometry import paired_basis, random_basis, safety_basis


def literal_rows(x, y):
    """The rows as the paper stacks them."""
    harm, ben = x[y], x[~y]
    delta = harm.mean(axis=0) - ben.mean(axis=0)
    copies = min(32, len(harm))
    return np.vstack([harm - harm.mean(axis=0), ben - ben.mean(axis=0), np.tile(5 * delta, (copies, 1))])


def literal_basis(x, y, k):
    return np.linalg.svd(literal_rows(x, y), full_matrices=False)[2][:k].T


def data(n, d, n_unsafe, seed=0):
    r = np.random.default_rng(seed)
    y = r.permutation(np.arange(n) < n_unsafe)
    x = r.standard_normal((n, d)) * np.exp(-np.arange(d) / 10) + 3.0
    x[y, -1] += 2.0
    return x, y


@pytest.mark.parametrize(("n", "d", "n_unsafe"), [(60, 25, 30), (30, 80, 11), (90, 40, 70), (50, 50, 3)])
def test_basis_is_that_of_the_stacked_rows(n, d, n_unsafe):
    x, y = data(n, d, n_unsafe)
    ours, theirs = safety_basis(x, y, 8), literal_basis(x, y, 8)
    assert ours.shape == (d, 8)
    np.testing.assert_allclose(np.abs(np.sum(ours * theirs, axis=0)), 1.0, atol=1e-8)  # column by column


def test_basis_when_the_difference_weighs_less_than_the_scatter():
    # More than 3,200 balanced items: the weight of the difference beside the total scatter turns negative.
    x, y = data(3400, 6, 1700)
    ours, theirs = safety_basis(x, y, 3), literal_basis(x, y, 3)
    np.testing.assert_allclose(np.abs(np.sum(ours * theirs, axis=0)), 1.0, atol=1e-8)


def test_basis_by_hand():
    # Inside the classes only axis 0 varies, by ±1; the means differ by 2 along axis 1.
    # Rows: ±1 on axis 0 (four, squared sum 4) and two copies of 5·2 on axis 1 (squared sum 200).
    x = np.array([[1.0, 2.0, 7.0], [-1.0, 2.0, 7.0], [1.0, 0.0, 7.0], [-1.0, 0.0, 7.0]])
    y = np.array([True, True, False, False])
    np.testing.assert_allclose(safety_basis(x, y, 2), [[0, 1], [1, 0], [0, 0]], atol=1e-12)
    # A third direction is not in the data, and so not in the basis.
    assert safety_basis(x, y, 3).shape == (3, 2)


def test_sign_is_fixed_by_the_largest_entry():
    x, y = data(40, 20, 20)
    u = safety_basis(x, y, 5)
    assert (u[np.abs(u).argmax(axis=0), range(5)] > 0).all()
    np.testing.assert_allclose(safety_basis(-x, y, 5), u, atol=1e-9)


def test_basis_finds_the_planted_direction_first():
    r = np.random.default_rng(1)
    direction = random_basis(200, 1, r)[:, 0]
    y = np.arange(120) % 2 == 0
    x = r.standard_normal((120, 200)) + 8.0 * np.outer(y, direction)
    # The mean difference has length 8 along it and √(200·4/120) = 2.6 elsewhere: cosine 0.95.
    assert abs(safety_basis(x, y, 4)[:, 0] @ direction) > 0.9


def test_float32_and_integer_labels_are_taken():
    x, y = data(30, 12, 15)
    np.testing.assert_allclose(
        safety_basis(x.astype(np.float32), y.astype(int), 2), safety_basis(x, y, 2), atol=1e-4
    )


def test_paired_basis_is_the_svd_of_the_differences():
    r = np.random.default_rng(2)
    a, b = r.standard_normal((20, 50)), r.standard_normal((20, 50)) + 1.0
    theirs = np.linalg.svd(a - b, full_matrices=False)[2][:6].T
    np.testing.assert_allclose(np.abs(np.sum(paired_basis(a, b, 6) * theirs, axis=0)), 1.0, atol=1e-8)
    # What twins share drops out.
    shared = 100 * r.standard_normal((20, 50))
    np.testing.assert_allclose(paired_basis(a + shared, b + shared, 6), paired_basis(a, b, 6), atol=1e-7)


def test_paired_basis_refuses_twins_that_do_not_match():
    with pytest.raises(ValueError, match=r"row by row.*\(3, 4\).*\(2, 4\)"):
        paired_basis(np.ones((3, 4)), np.ones((2, 4)), 1)


def test_random_basis_is_orthonormal_and_repeatable():
    u = random_basis(30, 7, np.random.default_rng(3))
    np.testing.assert_allclose(u.T @ u, np.eye(7), atol=1e-12)
    np.testing.assert_array_equal(u, random_basis(30, 7, np.random.default_rng(3)))
    with pytest.raises(ValueError, match="5 directions does not fit into 4"):
        random_basis(4, 5, np.random.default_rng(0))


@pytest.mark.parametrize("y", [np.ones(6, bool), np.zeros(6, bool)])
def test_one_class_has_no_safety_subspace(y):
    with pytest.raises(DataError, match="needs both classes"):
        safety_basis(np.eye(6), y, 2)


def test_constant_activations_have_no_subspace():
    with pytest.raises(DataError, match="do not vary"):
        safety_basis(np.full((6, 3), 0.1), np.arange(6) < 3, 2)


def test_spoiled_input_is_named():
    x = np.ones((4, 3))
    x[2, 1] = np.nan
    with pytest.raises(DataError, match="1 of 4 items are not finite, first item 2"):
        safety_basis(x, np.arange(4) < 2, 1)
    with pytest.raises(ValueError, match=r"\(items, features\), got shape \(4,\)"):
        safety_basis(np.ones(4), np.arange(4) < 2, 1)
    with pytest.raises(ValueError, match=r"labels: expected shape \(4,\)"):
        safety_basis(np.ones((4, 3)), np.arange(3) < 2, 1)
    with pytest.raises(ValueError, match="True \\(unsafe\\) and False"):
        safety_basis(np.ones((4, 3)), np.arange(4), 1)
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        safety_basis(np.eye(4), np.arange(4) < 2, 0)
