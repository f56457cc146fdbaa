"""What holds for any weights: ends, order of candidates, means over draws, signs, ratios, projections, budgets."""

import itertools

import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fusion_method_inputs import EVERY, dice, draw, extras, inputs, obs, same_bits, ties
from guardkeel.fusion.methods.base import Tensors
from guardkeel.fusion.methods.model_stock import agreement, ratio
from guardkeel.fusion.methods.registry import make, method_named
from guardkeel.fusion.methods.safe_delta import chosen, inverse_factor
from guardkeel.fusion.methods.safe_lora import along
from guardkeel.fusion.methods.streams import change, toward
from guardkeel.fusion.methods.trimming import trimmed

sizes = st.integers(1, 7)
counts = st.integers(1, 4)
seeds = st.integers(0, 2**31)
shares = st.floats(0, 1)
some = settings(max_examples=40, deadline=None)

# Small multiples of a power of two: zeros, equal magnitudes and exact cancellation are common, and sums are exact.
grid = st.integers(-6, 6).map(lambda i: i / 8)
numbers = st.floats(-(2.0**99), 2.0**99, width=32)


def columns(elements, rows=sizes):
    """(candidates, elements) of one number strategy, as a float32 tensor."""
    return (
        st.tuples(st.integers(2, 4), rows)
        .flatmap(lambda shape: arrays.arrays("float32", shape, elements=elements))
        .map(torch.from_numpy)
    )


def fuse(name, tensors, seed=0, **options):
    return make(name, options).fuse(tensors, dice(seed))


def around_zero(candidates):
    return Tensors("w", torch.zeros_like(candidates[0]), tuple(candidates))


# Ends


@some
@given(columns(numbers))
@example(torch.tensor([[-0.0, 1e-45], [0.0, -0.0]]))
def test_the_ends_are_the_inputs_to_the_bit(both):
    reference, candidate = both[0], both[1]
    tensors = Tensors("w", reference, (candidate,), both[-1], {"mask": torch.ones(1)})
    at_reference = [
        ("interpolation", {"alpha": 0}), ("task-arithmetic", {"scale": 0}), ("ties", {"density": 0}),
        ("ties", {"scale": 0}), ("dare", {"scale": 0}), ("slerp", {"t": 0}), ("random-mask", {"keep": 0}),
        ("somf", {"scale": 0}), ("reference", {}),
    ]  # fmt: skip
    at_candidate = [
        ("interpolation", {"alpha": 1}), ("task-arithmetic", {"scale": 1}), ("ties", {"density": 1}),
        ("dare", {"drop": 0}), ("slerp", {"t": 1}), ("random-mask", {"keep": 1}), ("somf", {}), ("linear", {}),
        ("resta", {"strength": 0}), ("antidote", {}), ("safe-lora", {}), ("safe-merge", {}), ("model-stock", {}),
        ("safe-delta", {"elsewhere": "candidate"}), ("candidate", {}),
    ]  # fmt: skip
    for end, cases in ((reference, at_reference), (candidate, at_candidate)):
        for name, options in cases:
            assert same_bits(fuse(name, tensors, **options), end), name


@some
@given(columns(numbers), shares)
def test_interpolation_stays_between_its_ends(both, alpha):
    found = toward(both[0], both[1], alpha)
    low, high = torch.minimum(both[0], both[1]), torch.maximum(both[0], both[1])
    slack = 2e-7 * torch.maximum(low.abs(), high.abs()) + 1e-44
    assert bool(((found >= low - slack) & (found <= high + slack)).all())


# Order of candidates. With dare, and what uses it, draws belong to places in the list.


@some
@given(
    st.sampled_from([n for n in EVERY if method_named(n).most is None]), st.integers(2, 3), seeds, st.data()
)
def test_the_order_of_candidates_changes_no_more_than_rounding(name, count, seed, data):
    options = {"dare": {"drop": 0}, "somf": {"merge": data.draw(st.sampled_from(["ties", "average"]))}}.get(
        name, {}
    )
    tensors = inputs((4, 6), count, seed, mask=extras((4, 6), seed)["mask"])
    turned = Tensors(
        "w", tensors.reference, tuple(data.draw(st.permutations(tensors.candidates))), extras=tensors.extras
    )
    torch.testing.assert_close(
        fuse(name, turned, **options), fuse(name, tensors, **options), rtol=1e-5, atol=1e-6
    )
    if count == 2 and name != "model-stock":  # a sum of two does not round by its order
        assert torch.equal(fuse(name, turned, **options), fuse(name, tensors, **options))


# Draws


@settings(max_examples=5, deadline=None)
@given(st.floats(0.05, 0.9), seeds)
def test_dare_and_the_random_mask_are_unbiased(drop, seed):
    tensors = inputs((3, 4), seed=seed)
    delta, draws = tensors.deltas[0].double(), 300
    for name, options in (
        ("dare", {"drop": drop}),
        ("random-mask", {"keep": 1 - drop}),
        ("random-mask", {"keep": 1 - drop, "granularity": "row"}),
        ("random-mask", {"keep": 1 - drop, "granularity": "tensor"}),
    ):
        mean = (
            sum(fuse(name, tensors, seed + i, **options).double() - tensors.reference for i in range(draws))
            / draws
        )
        # An element is δ/(1 − p) or 0: standard deviation |δ| √(p/(1 − p)). 12 elements, 4 cases: 6 σ never happens.
        bound = 6 * delta.abs() * (drop / (1 - drop) / draws) ** 0.5 + 1e-6
        assert bool(((mean - delta).abs() <= bound).all()), (name, options)


@settings(max_examples=5, deadline=None)
@given(st.floats(0.2, 0.9), st.sampled_from(["element", "row"]), seeds)
def test_the_random_mask_has_the_norm_that_its_share_says(keep, granularity, seed):
    tensors = inputs((400, 5), seed=seed)
    squares = tensors.deltas[0].double().square()
    by = squares.flatten() if granularity == "element" else squares.sum(1)
    sigma = float((by.square().sum() * keep * (1 - keep)) ** 0.5)
    for rescale, factor in ((True, keep**-2), (False, 1.0)):
        found = fuse("random-mask", tensors, seed, keep=keep, granularity=granularity, rescale=rescale)
        norm = float((found - tensors.reference).double().square().sum())
        assert abs(norm - factor * keep * float(squares.sum())) <= factor * 6 * sigma + 1e-3


# TIES


@some
@given(columns(grid), shares, st.sampled_from([1.0, 0.5, -1.0]))
def test_ties_is_what_going_through_the_elements_finds(candidates, density, scale):
    tensors = around_zero(candidates)
    torch.testing.assert_close(
        fuse("ties", tensors, density=density, scale=scale),
        ties(tensors.reference, tensors.candidates, density, scale),
    )


@some
@given(columns(grid))
def test_ties_elects_signs_fairly(candidates):
    found = fuse("ties", around_zero(candidates), density=1)
    mass = candidates.sum(0)
    assert torch.equal(found.sign(), mass.sign())  # the sign of the greater mass, none where both are alike
    assert torch.equal(fuse("ties", around_zero(-candidates), density=1), -found)  # no side is preferred
    agreeing = torch.where(candidates.sign() == found.sign(), candidates.abs(), 0)
    assert bool((found.abs() <= agreeing.amax(0) + 1e-6).all())  # a mean of those that agree


@some
@given(arrays.arrays("float32", st.integers(1, 60), elements=st.one_of(grid, numbers)), shares)
def test_trimming_keeps_so_many_and_none_smaller_than_what_goes(values, density):
    delta = torch.from_numpy(values)
    whole = list(trimmed(change(torch.zeros_like(delta), delta), delta.numel(), density)())
    kept = torch.cat(whole).flatten()
    count = int(density * delta.numel())
    assert bool(((kept == delta) | (kept == 0)).all())
    assert int((kept != 0).sum()) == min(count, int((delta != 0).sum()))
    gone = delta[(kept == 0) & (delta != 0)].abs()
    if count and len(gone):
        assert float(gone.max()) <= float(kept[kept != 0].abs().min())


# Model Stock


@given(st.floats(-1, 1), st.integers(2, 9))
def test_the_ratio_of_model_stock_is_within_0_and_1(cos, count):
    assert 0 <= ratio(cos, count) <= 1
    assert ratio(1, count) == 1
    assert ratio(cos, 1) == max(0, cos)
    if 1e-6 < cos < 1 - 1e-6:
        assert ratio(cos, count) < ratio(cos, count + 1)  # the more candidates, the nearer to their mean


@some
@given(st.integers(1, 4), seeds)
def test_model_stock_lies_on_the_way_to_the_mean(count, seed):
    tensors = inputs((4, 5), count, seed)
    cos = agreement(tensors.reference, tensors.candidates)
    pairs = [
        float(torch.cosine_similarity(a.flatten(), b.flatten(), 0))
        for a, b in itertools.combinations(tensors.deltas, 2)
    ]
    assert abs(cos - (sum(pairs) / len(pairs) if pairs else 1)) < 1e-5
    wanted = tensors.reference + ratio(cos, count) * sum(tensors.deltas) / count
    torch.testing.assert_close(fuse("model-stock", tensors), wanted, rtol=1e-4, atol=1e-5)


# Safe LoRA and SafeMERGE


@some
@given(sizes, sizes, seeds)
def test_the_projection_is_never_longer_than_the_alignment_lets_it(rows, width, seed):
    one = draw(seed)
    v, x = one(rows, width).double(), one(rows, 3).double()
    found = along(v, x)
    values = torch.linalg.svdvals(v)
    longest = float(values[0] ** 2 / torch.linalg.matrix_norm(v))
    assert float(found.norm()) <= longest * float(x.norm()) * (1 + 1e-9)
    assert longest <= float(torch.linalg.matrix_norm(v)) * (1 + 1e-9)
    assert float((x * found).sum()) >= -1e-9  # no cosine is below 0


@some
@given(sizes, sizes, seeds)
def test_the_projection_onto_one_direction_is_idempotent_up_to_scale(rows, width, seed):
    one = draw(seed)
    u, w, x = one(rows, 1).double(), one(1, width).double(), one(rows, 3).double()
    assume(float(u.norm() * w.norm()) > 1e-3)
    once = along(u @ w, x)
    torch.testing.assert_close(along(u @ w, once), (u @ w).norm() * once)


@some
@given(seeds, shares, shares)
def test_safe_methods_give_the_candidate_or_their_repair(seed, threshold, weight):
    tensors = inputs((5, 4), seed=seed)
    v = tensors.reference - tensors.unaligned
    d = tensors.deltas[0]
    kept = along(v, d)
    failed = float(torch.cosine_similarity(d.flatten(), kept.flatten(), 0)) <= threshold
    wanted = tensors.reference + (kept if failed else d)
    torch.testing.assert_close(fuse("safe-lora", tensors, threshold=threshold), wanted, rtol=1e-4, atol=1e-5)
    wanted = tensors.reference + (weight if failed else 1) * d
    found = fuse("safe-merge", tensors, threshold=threshold, weight=weight)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


# Safe Delta


@some
@given(st.integers(1, 4), st.integers(1, 6), shares, st.floats(0.01, 1), seeds)
def test_safe_delta_is_its_choice_and_brute_force_surgery(rows, width, budget, damping, seed):
    x = draw(seed)(3 * width, width)
    h = 2 * x.T @ x / len(x)
    tensors = inputs((rows, width), seed=seed, **{"safe-hessian": h})
    factor = inverse_factor(h, damping, "w")
    keep = chosen(tensors.deltas[0], factor.diagonal(), budget, "change", 0.0)
    damped = h + damping * h.diagonal().mean() * torch.eye(width)
    wanted = obs(tensors.reference, tensors.candidates[0], keep, damped)
    found = fuse("safe-delta", tensors, budget=budget, unit="change", damping=damping)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-2, atol=1e-3)
    assert torch.equal(found[keep], tensors.candidates[0][keep])
    assert same_bits(fuse("safe-delta", tensors, budget=0), tensors.reference)
    assert same_bits(fuse("safe-delta", tensors, budget=1e20), tensors.candidates[0])


@some
@given(seeds, shares, shares)
def test_a_larger_budget_keeps_all_that_a_smaller_one_does(seed, one, other):
    delta, scale = draw(seed)(5, 6), draw(seed + 1)(6).abs() + 0.05
    small, large = (chosen(delta, scale, budget, "change", 0.0) for budget in sorted((one, other)))
    assert bool((large | ~small).all())


# Antidote


@some
@given(shares, seeds)
def test_antidote_prunes_so_many_a_row_and_none_that_scores_less(share, seed):
    tensors = inputs((4, 9), seed=seed, **{"harmful-norms": extras((4, 9), seed)["harmful-norms"]})
    found = fuse("antidote", tensors, share=share)
    gone = found == 0
    scores = tensors.candidates[0].abs() * tensors.extras["harmful-norms"]
    assert bool((gone.sum(1) == int(share * 9)).all())
    assert torch.equal(found[~gone], tensors.candidates[0][~gone])
    lowest = torch.where(gone, scores, torch.inf).amin(1)
    assert bool((torch.where(gone, 0, scores).amax(1) <= lowest).all())
