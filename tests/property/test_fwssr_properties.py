import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkeel.tuning.regularisers import ssr_maths as maths

few = settings(max_examples=50, deadline=None)
seeds = st.integers(0, 2**32 - 1)
cosines = st.floats(-1, 1)


def tensors(seed, n, d, k):
    """Hidden states, reference states, a basis and weights of mean 1, in float64."""
    r = np.random.default_rng(seed)
    hidden, reference = r.standard_normal((2, n, d)) * 10.0 ** r.uniform(-2, 2)
    basis = np.linalg.qr(r.standard_normal((d, k)))[0]
    weights = r.exponential(size=k) + 1e-3
    return (*map(torch.from_numpy, (hidden, reference, basis, weights / weights.mean())), r)


sizes = st.tuples(seeds, st.integers(2, 8), st.integers(3, 12), st.integers(1, 3))


@few
@given(sizes)
def test_with_uniform_weights_the_basis_may_be_turned(size):
    hidden, reference, u, weights, r = tensors(*size)
    turn = torch.from_numpy(np.linalg.qr(r.standard_normal((u.shape[1], u.shape[1])))[0])
    turned = u @ turn
    ones = torch.ones_like(weights)
    value = maths.penalty(hidden, reference @ u, u, ones, maths.spread(reference @ u))
    again = maths.penalty(hidden, reference @ turned, turned, ones, maths.spread(reference @ turned))
    torch.testing.assert_close(value, again, rtol=1e-9, atol=1e-12)


@few
@given(sizes, st.floats(0.01, 100))
def test_the_penalty_ignores_units_is_zero_at_the_reference_and_grows_with_the_square(size, unit):
    hidden, reference, u, weights, _ = tensors(*size)

    def value(h, h0):
        return maths.penalty(h, h0 @ u, u, weights, maths.spread(h0 @ u))

    assert value(reference, reference) == 0
    assert value(hidden, reference) >= 0
    torch.testing.assert_close(value(unit * hidden, unit * reference), value(hidden, reference))
    twice = value(reference + 2 * (hidden - reference), reference)
    torch.testing.assert_close(twice, 4 * value(hidden, reference))


@few
@given(sizes, st.floats(1e-6, 1e6))
def test_weights_have_mean_one_and_ignore_the_size_of_the_fisher(size, unit):
    gradients, _, u, _, _ = tensors(*size)
    f = maths.fisher(gradients, u)
    weights = maths.normalised(f)
    torch.testing.assert_close(weights.mean(), torch.ones_like(weights.mean()))
    torch.testing.assert_close(maths.normalised(unit * f), weights)
    assert 1 - 1e-9 <= maths.effective_rank(weights) <= u.shape[1] + 1e-9
    order = torch.randperm(len(gradients))
    torch.testing.assert_close(maths.fisher(gradients[order], u), f)


@few
@given(
    st.floats(1e-3, 1e3),
    st.lists(cosines, max_size=60),
    st.floats(0.01, 1),
    st.floats(1, 100),
    st.floats(0.01, 5),
)
def test_the_adaptive_lambda_stays_in_bounds_and_moves_the_right_way(start, angles, low, high, gain):
    low, high, value = low * start, high * start, start
    for angle in angles:
        new = maths.adaptive(value, angle, low, high, gain)
        assert low <= new <= high
        if angle < 0:
            assert new >= value
            assert new > value or value == high or angle * gain > -1e-12
        else:
            assert new <= value
        value = new


@few
@given(st.floats(1e-4, 1), st.lists(cosines, max_size=60))
def test_the_released_lambda_stays_in_bounds_and_moves_the_right_way(start, angles):
    value, rounding = start, 1e-12
    for angle in angles:
        new = maths.released(value, angle)
        assert 1e-4 * (1 - rounding) <= new <= 1 + rounding
        assert new >= value * (1 - rounding) if angle < 0 else new <= value * (1 + rounding)
        assert abs(new - value) <= 0.025 * value + rounding
        value = new


@few
@given(seeds, st.integers(1, 20), st.floats(0.01, 100))
def test_the_cosine_is_symmetric_bounded_and_ignores_size(seed, d, unit):
    r = np.random.default_rng(seed)
    a, b = (
        {"w": torch.from_numpy(r.standard_normal(d)), "v": torch.from_numpy(r.standard_normal((2, d)))}
        for _ in "ab"
    )
    value = maths.cosine(a, b)
    assert -1 <= value <= 1
    assert maths.cosine(b, a) == value
    assert abs(maths.cosine({k: unit * v for k, v in a.items()}, b) - value) < 1e-5
    assert abs(maths.cosine({k: -v for k, v in a.items()}, b) + value) < 1e-5
    assert maths.cosine(a, a) > 1 - 1e-6


@few
@given(sizes, st.data())
def test_separation_is_one_at_the_reference_and_finite_for_any_draw(size, data):
    seed, n, d, k = size
    hidden, reference, u, _, _ = tensors(seed, n + 4, d, k)
    unsafe = torch.from_numpy(np.arange(n + 4) % 2 == 1)
    z = reference @ u
    means, within = maths.class_means(z, unsafe)
    picks = data.draw(st.lists(st.integers(0, n + 3), min_size=1, unique=True))
    at_reference = maths.separation(z[picks], z[picks], unsafe[picks], means, within)
    torch.testing.assert_close(at_reference, torch.ones_like(at_reference))
    live = (hidden[picks] @ u).requires_grad_()
    value = maths.separation(live, z[picks], unsafe[picks], means, within)
    value.backward()
    assert value.isfinite()
    assert value >= 0
    assert live.grad.isfinite().all()
    collapsed = means[unsafe[picks].long()]  # every probe on its class mean: S_w of the draw is zero
    assert maths.separation(collapsed, z[picks], unsafe[picks], means, within).isfinite()
