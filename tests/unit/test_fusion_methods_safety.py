"""Methods that look for safety in the weights: Safe LoRA, SafeMERGE, Safe Delta, Antidote."""

import pytest
import torch

from fusion_method_inputs import dice, draw, extras, inputs, obs, same_bits
from guardkeel.errors import DataError
from guardkeel.fusion.methods.antidote import highest
from guardkeel.fusion.methods.base import Tensors
from guardkeel.fusion.methods.registry import make
from guardkeel.fusion.methods.safe_delta import chosen, compensated, inverse_factor
from guardkeel.fusion.methods.safe_lora import along, projected
from guardkeel.tuning.posthoc import safe_projected


def fuse(name, tensors, **options):
    return make(name, options).fuse(tensors, dice())


# Safe LoRA and SafeMERGE


def in_alignment(shape=(6, 5), share=1.0):
    """A candidate whose change lies, for this share, along a rank-one alignment."""
    one = draw(3)
    reference, u = one(*shape), one(shape[0], 1)
    unaligned = reference - 2 * u @ one(1, shape[1])
    across = one(*shape)
    across -= u @ (u.T @ across) / (u.T @ u)
    delta = share * u @ one(1, shape[1]) + (1 - share) * across
    return Tensors("layer.weight", reference, (reference + delta,), unaligned)


@pytest.mark.parametrize("shape", [(6, 5), (3, 9), (9, 3)])
def test_the_stand_in_projector_is_what_its_formula_says(shape):
    one = draw(1)
    v, x = one(*shape), one(shape[0], 4)
    wanted = v @ v.T / torch.linalg.matrix_norm(v) @ x
    torch.testing.assert_close(along(v, x), wanted)


def test_what_points_along_the_alignment_stays_and_what_does_not_is_projected():
    along_it, across = in_alignment(share=1.0), in_alignment(share=0.05)
    assert same_bits(fuse("safe-lora", along_it), along_it.candidates[0])
    v = across.reference - across.unaligned
    wanted = across.reference + v @ v.T @ across.deltas[0] / torch.linalg.matrix_norm(v)
    torch.testing.assert_close(fuse("safe-lora", across), wanted)
    assert same_bits(fuse("safe-merge", along_it), along_it.candidates[0])
    mixed = 0.8 * across.candidates[0] + 0.2 * across.reference
    torch.testing.assert_close(fuse("safe-merge", across), mixed)
    torch.testing.assert_close(
        fuse("safe-merge", across, weight=0.3), across.reference + 0.3 * across.deltas[0]
    )
    assert same_bits(fuse("safe-merge", across, weight=0), across.reference)


def test_the_threshold_decides():
    tensors = inputs((7, 4))
    _, cos = projected(tensors.reference - tensors.unaligned, tensors.deltas[0])
    assert 0 < cos < 1
    assert same_bits(fuse("safe-lora", tensors, threshold=cos - 1e-6), tensors.candidates[0])
    assert not torch.equal(fuse("safe-lora", tensors, threshold=cos), tensors.candidates[0])


def test_safe_lora_agrees_with_the_repair_after_training():
    tensors = inputs((7, 4))
    weights, found = safe_projected(
        {"layer.weight": tensors.reference},
        {"layer.weight": tensors.candidates[0]},
        {"layer": tensors.reference - tensors.unaligned},
        threshold=1.0,
    )
    torch.testing.assert_close(fuse("safe-lora", tensors, threshold=1.0), weights["layer.weight"])
    _, cos = projected(tensors.reference - tensors.unaligned, tensors.deltas[0])
    assert cos == pytest.approx(found[0].cosine, abs=1e-6)


@pytest.mark.parametrize("name", ["safe-lora", "safe-merge"])
def test_what_has_no_direction_or_is_no_matrix_is_left_alone(name):
    tensors = inputs()
    r, c, u = tensors.reference, tensors.candidates, tensors.unaligned
    same = {"threshold": 1.0}
    left = [
        Tensors("layer.weight", r, c, r),  # never aligned
        Tensors("layer.weight", r, c, r + 1e-25 * torch.sign(r)),  # squares of this are below float32
        Tensors("layer.weight", r, (r.clone(),), u),  # never changed
        Tensors("embed_tokens.weight", r, c, u),  # skipped by name
        inputs((5,)),
        inputs((2, 3, 4)),
    ]
    for case in left:
        assert same_bits(fuse(name, case, **same), case.candidates[0])
    assert not torch.equal(fuse(name, left[3], skip=(), **same), c[0])


# Safe Delta


def hessian_of(width, seed=0):
    x = draw(seed)(3 * width, width)
    return 2 * x.T @ x / len(x)


def test_the_factor_is_that_of_the_damped_inverse():
    h = hessian_of(6)
    factor = inverse_factor(h, 0.01, "w")
    damped = h + 0.01 * h.diagonal().mean() * torch.eye(6)
    torch.testing.assert_close(factor.T @ factor, torch.linalg.inv(damped), rtol=1e-4, atol=1e-4)
    assert torch.equal(factor, factor.triu())
    j = 2  # U_jj² is the inverse's entry when what comes before is fixed
    torch.testing.assert_close(
        factor[j, j] ** 2, torch.linalg.inv(damped[j:, j:])[0, 0], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("width", [1, 5, 140])  # more than are passed on together
def test_compensation_is_optimal_brain_surgeon(width):
    tensors = inputs((3, width), seed=width)
    keep = torch.rand(3, width, generator=dice(1)) < 0.4
    h = hessian_of(width)
    factor = inverse_factor(h, 0.01, "w")
    damped = h + 0.01 * h.diagonal().mean() * torch.eye(width)
    found = compensated(tensors.reference, tensors.candidates[0], keep, factor)
    wanted = obs(tensors.reference, tensors.candidates[0], keep, damped)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-3)
    assert torch.equal(found[keep], tensors.candidates[0][keep])
    moved = (found - tensors.reference).double()
    plain = torch.where(keep, tensors.deltas[0], 0).double()

    def cost(d):
        return float((d @ damped.double() * d).sum())

    assert cost(moved) <= cost(plain) + 1e-9  # it makes good, and never worse


def spend(delta, scale, limit):
    """The choice by a plain loop: columns by falling scale, rows in order, until one does not fit."""
    keep, left = torch.zeros(delta.shape, dtype=torch.bool), limit
    for j in sorted(range(delta.shape[1]), key=lambda j: (-float(scale[j]), j)):
        for i in range(delta.shape[0]):
            cost = float(delta[i, j]) ** 2 / float(scale[j]) ** 2
            if cost > left:
                return keep
            keep[i, j], left = True, left - cost
    return keep


@pytest.mark.parametrize("budget", [0.0, 0.03, 0.3, 0.9, 1.0])
def test_the_budget_is_spent_where_curvature_is_low(budget):
    delta = draw(4)(5, 8)
    scale = draw(5)(8).abs() + 0.1
    total = float((delta.double() ** 2 / scale.double() ** 2).sum())
    found = chosen(delta, scale, budget, "change", 0.0)
    assert torch.equal(found, spend(delta, scale, budget * total * (1 + 1e-12)))
    spent = float(((delta.double() / scale.double()) ** 2)[found].sum())
    assert spent <= budget * total * (1 + 1e-9)


def test_the_released_unit_does_not_grow_with_the_change():
    delta, scale = draw(4)(64, 64), draw(5)(64).abs() + 0.1
    limit = 5e6 * 64 * 64 / 4096**2 * float((scale.double() ** -2).mean())
    found = chosen(delta, scale, 5e6, "curvature", 0.0)
    assert torch.equal(found, spend(delta, scale, limit))
    assert 0 < found.sum() < found.numel()
    assert chosen(2 * delta, scale, 5e6, "curvature", 0.0).sum() < found.sum()
    assert torch.equal(chosen(2 * delta, scale, 0.2, "change", 0.0), chosen(delta, scale, 0.2, "change", 0.0))


def test_columns_of_the_highest_curvature_can_be_withheld():
    delta, scale = draw(4)(5, 8), torch.arange(1.0, 9.0)
    found = chosen(delta, scale, 1e9, "change", 0.25)
    assert not found[:, :2].any()
    assert found[:, 2:].all()
    assert not chosen(delta, scale, 1e9, "change", 1.0).any()


@pytest.mark.parametrize("unit", ["change", "curvature"])
@pytest.mark.parametrize("compensate", [True, False])
def test_no_budget_is_the_reference_and_any_budget_the_candidate(unit, compensate):
    tensors = inputs(**{"safe-hessian": hessian_of(5)})
    options = {"unit": unit, "compensate": compensate}
    assert same_bits(fuse("safe-delta", tensors, budget=0, **options), tensors.reference)
    assert same_bits(fuse("safe-delta", tensors, budget=1e12, **options), tensors.candidates[0])
    if unit == "change":
        assert same_bits(fuse("safe-delta", tensors, budget=1, **options), tensors.candidates[0])


def test_the_scale_of_the_hessian_does_not_matter():
    tensors = inputs((16, 8), **{"safe-hessian": hessian_of(8)})
    larger = inputs((16, 8), **{"safe-hessian": 1024 * hessian_of(8)})
    for unit in ("change", "curvature"):
        options = {"budget": 0.3 if unit == "change" else 3e4, "unit": unit}
        torch.testing.assert_close(
            fuse("safe-delta", tensors, **options), fuse("safe-delta", larger, **options)
        )


def test_inputs_that_are_never_active_are_free_to_change():
    h = hessian_of(5)
    h[2], h[:, 2] = 0, 0
    tensors = inputs(**{"safe-hessian": h})
    found = fuse("safe-delta", tensors, budget=0.05, unit="change")
    assert torch.equal(found[:, 2], tensors.candidates[0][:, 2])


def test_tensors_without_a_hessian_are_taken_whole():
    for tensors in (inputs(), inputs(**{"safe-hessian": torch.zeros(5, 5)})):
        assert same_bits(fuse("safe-delta", tensors), tensors.reference)
        assert same_bits(fuse("safe-delta", tensors, elsewhere="candidate"), tensors.candidates[0])


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (inputs(**{"safe-hessian": torch.eye(6)}), r"\(6, 6\) for a tensor of \(6, 5\)"),
        (inputs((5,), **{"safe-hessian": torch.eye(5)}), r"\(5, 5\) for a tensor of \(5,\)"),
        (inputs(**{"safe-hessian": -torch.eye(5)}), "not positive definite"),
        (inputs(**{"safe-hessian": torch.full((5, 5), float("nan"))}), "not positive definite"),
    ],
)
def test_hessians_that_cannot_be_used_are_refused_by_name(tensors, said):
    with pytest.raises(DataError, match=said) as caught:
        fuse("safe-delta", tensors)
    assert "layer.weight" in caught.value.problem


# Antidote


def prune(weights, norms, share, instead):
    """Row by row, by sorting."""
    out = weights.clone()
    for i, row in enumerate(weights):
        score = row.abs() * norms
        order = sorted(range(len(row)), key=lambda j: (-float(score[j]), j))
        for j in order[: int(share * len(row))]:
            if score[j]:
                out[i, j] = instead[i, j]
    return out


@pytest.mark.parametrize("share", [0, 0.1, 0.35, 1])
@pytest.mark.parametrize("coarse", [False, True])
def test_pruning_is_what_a_loop_over_rows_finds(share, coarse):
    tensors = inputs((9, 20), **{"harmful-norms": extras((9, 20))["harmful-norms"]})
    if coarse:  # many equal scores, many of them 0
        c = (2 * tensors.candidates[0]).round() / 2
        norms = torch.tensor([0.0, 1, 1, 2] * 5)
        tensors = Tensors("layer.weight", tensors.reference, (c,), None, {"harmful-norms": norms})
    norms, c = tensors.extras["harmful-norms"], tensors.candidates[0]
    assert torch.equal(fuse("antidote", tensors, share=share), prune(c, norms, share, torch.zeros_like(c)))
    back = fuse("antidote", tensors, share=share, to="reference")
    assert torch.equal(back, prune(c, norms, share, tensors.reference))


def test_the_highest_of_equal_scores_are_the_first():
    scores = torch.tensor([[1.0, 2, 2, 2, 0], [0, 0, 0, 0, 3]])
    found = highest(scores, 3)
    assert found.tolist() == [[False, True, True, True, False], [False, False, False, False, True]]
    assert highest(scores, 2).tolist()[0] == [False, True, True, False, False]


def test_tensors_without_norms_are_left_alone():
    tensors = inputs()
    assert same_bits(fuse("antidote", tensors), tensors.candidates[0])


@pytest.mark.parametrize(("shape", "norms"), [((6, 5), 6), ((5,), 5), ((2, 3, 5), 5)])
def test_norms_that_do_not_fit_are_refused_by_name(shape, norms):
    with pytest.raises(DataError, match=rf"layer\.weight.*\({norms},\)"):
        fuse("antidote", inputs(shape, **{"harmful-norms": torch.ones(norms)}))
