import math

import pytest
import torch

from guardkeel.errors import RunError
from guardkeel.tuning.regularisers import ssr_maths as maths


def test_penalty_by_hand():
    basis = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    hidden = torch.tensor([[1.0, 2.0, 9.0], [3.0, 0.0, 9.0]])
    reference = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    weights, scale = torch.tensor([0.5, 1.5]), torch.tensor(2.0)
    # rows: 0.5·1 + 1.5·4 = 6.5 and 0.5·4 + 1.5·1 = 3.5
    assert maths.penalty(hidden, reference, basis, weights, scale).item() == pytest.approx(5.0 / 2)
    whole = maths.penalty(hidden, torch.zeros(2, 3), None, torch.ones(3), torch.tensor(1.0))
    assert whole.item() == pytest.approx((1 + 4 + 81 + 9 + 81) / 2)


def test_spread_fisher_proxy_and_normalised_by_hand():
    rows = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    assert maths.spread(rows).item() == pytest.approx(1 + 4)
    basis = torch.tensor([[0.6], [0.8]])
    assert maths.fisher(rows, basis).tolist() == pytest.approx([(0.8**2 + 5.2**2) / 2])
    assert maths.fisher(rows, None).tolist() == pytest.approx([2.0, 13.0])
    assert maths.proxy(rows).tolist() == pytest.approx([2.0, 13.0])
    assert maths.normalised(torch.tensor([1.0, 3.0])).tolist() == [0.5, 1.5]
    for useless in (torch.zeros(2), torch.tensor([math.nan, 1.0])):
        with pytest.raises(ValueError, match="positive, finite mean"):
            maths.normalised(useless)


def test_effective_rank_counts_directions():
    assert maths.effective_rank(torch.tensor([2.0, 2.0, 0.0, 0.0])) == pytest.approx(2)
    assert maths.effective_rank(torch.ones(5)) == pytest.approx(5)


def test_cosine_by_hand():
    a = {"x": torch.tensor([3.0, 0.0]), "y": torch.tensor([[4.0]])}
    b = {"x": torch.tensor([3.0, 0.0]), "z": torch.tensor([4.0])}
    assert maths.cosine(a, b) == pytest.approx(9 / 25)
    assert maths.cosine(a, {k: -2 * v for k, v in a.items()}) == pytest.approx(-1)
    assert maths.cosine(a, {k: 0 * v for k, v in a.items()}) == 0
    with pytest.raises(RunError, match="not finite"):
        maths.cosine(a, {"x": torch.tensor([math.inf, 0.0])})


def test_lambda_rules_by_hand():
    assert maths.adaptive(1.0, -0.5, 0.1, 10, 2.0) == pytest.approx(math.e)
    assert maths.adaptive(1.0, 0.5, 0.1, 10, 2.0) == pytest.approx(1 / math.e)
    assert maths.adaptive(9.0, -1.0, 0.1, 10, 1.0) == 10
    assert maths.adaptive(0.2, 1.0, 0.1, 10, 1.0) == 0.1
    assert maths.released(0.1, -1.0) == pytest.approx(0.095 + 0.05 * 0.15)
    assert maths.released(2.0, -1.0) == pytest.approx(1.9 + 0.05)  # λ' never goes above 1
    assert maths.released(0.3, 0.0) == pytest.approx(0.3)


def test_separation_by_hand():
    reference = torch.tensor([[-1.0], [-3.0], [1.0], [3.0]])
    unsafe = torch.tensor([False, False, True, True])
    means, within = maths.class_means(reference, unsafe)
    assert means.flatten().tolist() == [-2, 2]
    assert within.item() == 1
    live = reference + torch.tensor([[0.0], [0.0], [1.0], [3.0]])
    # unsafe mean 2 → 4, S_b 16 → 36; squares about the means 1, 1, 4, 4 and one that stays: 11 against 5
    assert maths.separation(live, reference, unsafe, means, within).item() == pytest.approx(36 / 16 * 5 / 11)
    one_class = maths.separation(live[2:], reference[2:], unsafe[2:], means, within)
    assert one_class.item() == pytest.approx(36 / 16 * 3 / 9)
    one_each = maths.separation(live[[0, 2]], reference[[0, 2]], unsafe[[0, 2]], means, within)
    assert one_each.item() == pytest.approx(25 / 16)  # one probe says nothing about its class's scatter
    assert maths.separation(reference, reference, unsafe, means, within).item() == 1


@pytest.mark.parametrize("picks", [[0, 1], [0, 2, 4], [3, 1, 0, 6, 5, 2]])
def test_gradients_of_the_formulas_against_finite_differences(picks):
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    basis = torch.linalg.qr(rand(5, 3))[0]
    whole, unsafe = rand(8, 5), torch.arange(8) % 2 == 1
    z = whole @ basis
    means, within = maths.class_means(z, unsafe)
    live = (whole[picks] + rand(len(picks), 5)).requires_grad_()
    weights = maths.normalised(rand(3).square())

    def penalty(h):
        return maths.penalty(h, z[picks], basis, weights, maths.spread(z))

    def separation(h):
        return maths.separation(maths.project(h, basis), z[picks], unsafe[picks], means, within)

    assert torch.autograd.gradcheck(penalty, (live,))
    assert torch.autograd.gradcheck(separation, (live,))


def test_the_penalty_is_float32_for_half_precision_and_under_autocast():
    generator = torch.Generator().manual_seed(0)
    h, u = torch.randn(4, 64, generator=generator), torch.randn(64, 3, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (h @ u).dtype == torch.bfloat16
        torch.testing.assert_close(maths.project(h, u), (h.double() @ u.double()).float())
    assert maths.project(h.bfloat16(), u).dtype == torch.float32
