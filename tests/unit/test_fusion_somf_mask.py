"""Masks and merges as maths: moments of the Binary Concrete, shapes, draws, and parity with the method that fuses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from guardkeel.fusion.methods.base import Tensors
from guardkeel.fusion.methods.merging import Merging
from guardkeel.fusion.methods.registry import methods
from guardkeel.fusion.randomness import generator
from guardkeel.fusion.somf.mask import drawn, exported, logits_shape, middle, moments, rescaled
from guardkeel.fusion.somf.merging import SCALES, merge


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0, 2.0])
def test_moments_are_those_of_the_density(temperature):
    """∫ σ((l + log u − log(1 − u))/T)^k du, by another rule and over another variable."""
    logits = torch.tensor([-9.0, -2.5, -0.1, 0.0, 1.0, 4.0, 12.0], dtype=torch.float64)
    mean, variance = moments(logits, temperature)
    for logit, m, v in zip(logits.tolist(), mean.tolist(), variance.tolist(), strict=True):

        def mask(u, k, logit=logit):
            z = (logit + math.log(u) - math.log1p(-u)) / temperature
            return (1 / (1 + math.exp(-z)) if z > -700 else 0.0) ** k

        edge = 1 / (1 + math.exp(logit))  # where the mask is ½, and steepest
        first, second = (quad(mask, 0, 1, args=(k,), points=[edge], limit=400)[0] for k in (1, 2))
        assert m == pytest.approx(first, abs=2e-5)
        assert v == pytest.approx(second - first**2, abs=2e-5)


def test_the_expectation_is_not_the_median():
    logits = torch.tensor([1.0])
    expectation = exported("expectation", 0.5)("w", logits)
    assert float(expectation) == pytest.approx(0.71, abs=0.01)
    assert float(middle(0.5)("w", logits)) == pytest.approx(0.8808, abs=1e-4)
    a = math.e  # at T = 1 there is a closed form
    assert float(moments(logits, 1.0)[0]) == pytest.approx(a * (a - 2) / (a - 1) ** 2, abs=1e-5)


def test_draws_have_the_moments_that_are_reported():
    logits = torch.full((200_000,), 0.7)
    masks = drawn(3, 0, 0.5)("w", logits)
    mean, variance = moments(logits[:1], 0.5)
    assert float(masks.mean()) == pytest.approx(float(mean), abs=4 * math.sqrt(float(variance) / 200_000))
    assert float(masks.var()) == pytest.approx(float(variance), rel=0.02)
    assert float((masks > 0.5).float().mean()) == pytest.approx(1 / (1 + math.exp(-0.7)), abs=0.005)


@given(st.floats(-30, 30), st.floats(0.02, 5))
@settings(max_examples=60, deadline=None)
def test_expectations_are_probabilities_and_symmetric(logit, temperature):
    both = torch.tensor([logit, -logit], dtype=torch.float64)
    mean, variance = moments(both, round(temperature, 1) or 0.1)
    assert float(mean.min()) >= 0 and float(mean.max()) <= 1
    assert float(mean.sum()) == pytest.approx(1, abs=1e-5)
    assert float(variance.min()) >= 0 and float(variance.max()) <= 0.25 + 1e-6


def test_draws_follow_from_seed_step_and_name_alone():
    logits = torch.zeros(5, 7)
    one = drawn(1, 2, 0.5)("a", logits)
    drawn(1, 2, 0.5)("b", logits)
    torch.rand(10)
    assert torch.equal(drawn(1, 2, 0.5)("a", logits), one)
    others = [drawn(1, 2, 0.5)("b", logits), drawn(1, 3, 0.5)("a", logits), drawn(2, 2, 0.5)("a", logits)]
    assert not any(torch.equal(other, one) for other in others)


def test_a_binary_mask_is_the_median_over_the_threshold():
    logits = torch.tensor([-0.1, 0.0, 0.3, 0.5])
    assert exported("binary", 0.5)("w", logits).tolist() == [0, 1, 1, 1]
    assert exported("binary", 0.5, 0.7)("w", logits).tolist() == [0, 0, 0, 1]  # σ(0.6) = 0.65, σ(1) = 0.73


def test_a_mask_that_leaves_nothing_stays_one():
    zero = torch.zeros(3)
    assert rescaled(zero, zero.mean()).tolist() == [0, 0, 0]
    assert rescaled(zero, 0.0).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 6), {"element": (4, 6), "row": (4, 1), "tensor": (1,)}),
        ((6,), {"element": (6,), "row": (6,), "tensor": (1,)}),
        ((2, 3, 5), {"element": (2, 3, 5), "row": (2, 3, 1), "tensor": (1,)}),
    ],
)
def test_shapes_are_what_the_method_takes(shape, expected):
    somf = methods()["somf"]
    for granularity, wanted in expected.items():
        assert logits_shape(shape, granularity) == wanted
        mask = torch.rand(wanted)
        assert (
            somf().fuse(Tensors("w", torch.zeros(shape), (torch.ones(shape),), extras={"mask": mask})).shape
            == shape
        )


@pytest.mark.parametrize("how", ["task-arithmetic", "ties", "dare", "average"])
@pytest.mark.parametrize("granularity", ["element", "row", "tensor"])
@pytest.mark.parametrize("count", [1, 3])
def test_merges_are_those_of_the_method_that_fuses(how, granularity, count):
    torch.manual_seed(0)
    reference, *candidates = (torch.randn(40, 30) for _ in range(count + 1))
    mask = torch.rand(logits_shape((40, 30), granularity))
    somf = methods()["somf"]
    fused = somf(somf.Settings(merge=how)).fuse(
        Tensors("w", reference, tuple(candidates), extras={"mask": mask}), generator(5, "w")
    )
    deltas = [(c - reference) * rescaled(mask, mask.mean()) for c in candidates]
    ours = reference + merge("w", deltas, Merging(merge=how), 5)
    assert torch.allclose(ours, fused, atol=1e-5)


def test_scales_are_those_of_the_method():
    for how, scale in SCALES.items():
        assert torch.equal(
            merge("w", [torch.ones(2)] * 3, Merging(merge=how, drop=0, density=1), 0),
            merge("w", [torch.ones(2)] * 3, Merging(merge=how, drop=0, density=1, scale=scale), 0),
        )
        delta = torch.full((2, 2), 2.0)
        assert torch.equal(
            merge("w", [delta], Merging(merge=how), 0), delta
        )  # a single one is added as it is


def test_ties_lets_gradients_through_to_what_it_keeps():
    torch.manual_seed(1)
    deltas = [torch.randn(50) for _ in range(2)]
    mask = torch.full((50,), 0.5, requires_grad=True)
    out = merge("w", [d * mask for d in deltas], Merging(merge="ties", density=0.3), 0)
    out.sum().backward()
    kept = out.detach() != 0
    assert 0 < int(kept.sum()) < 50
    assert torch.equal(mask.grad != 0, kept)
