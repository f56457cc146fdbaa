import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from guardkeel.evaluation import paired


@pytest.mark.parametrize(
    ("worse", "better", "n", "confidence", "ends", "digits"),
    [
        (9, 3, 32, 0.95, (-0.027, 0.390), 3),  # Tango 1998
        (0, 1, 44, 0.90, (-0.096, 0.037), 3),  # Tango 1998
        (16, 8, 86, 0.95, (-0.020, 0.207), 3),  # Agresti & Min 2005
        (1, 7, 21, 0.95, (-0.517, -0.026), 3),  # Fagerland, Lydersen & Laake 2014
        (3, 1, 14, 0.95, (-0.1670, 0.4327), 4),  # Tang et al. 2010
        (6, 16, 161, 0.95, (-0.1240, -0.0054), 4),  # Fagerland et al. 2017, consolidation therapy
    ],
)
def test_tango_interval_gives_the_published_values(worse, better, n, confidence, ends, digits):
    found = paired.tango_interval(worse, better, n, confidence)
    assert tuple(round(x, digits) for x in found) == ends


@pytest.mark.parametrize(
    ("table", "low", "high", "digits"),
    [
        ((20, 12, 2, 16), 0.0562, 0.3292, 4),  # Newcombe 1998, method 10
        ((1, 1, 7, 12), -0.507, -0.026, 3),  # Fagerland, Lydersen & Laake 2014
        ((8, 3, 1, 2), -0.1574, 0.4136, 4),  # Tang et al. 2010
        ((59, 6, 16, 80), -0.1186, -0.0046, 4),  # Fagerland et al. 2017
    ],
)
def test_newcombe_interval_gives_the_published_values(table, low, high, digits):
    assert tuple(round(x, digits) for x in paired.newcombe_interval(*table)) == (low, high)


def test_newcombe_without_a_margin_has_no_correlation():
    low, high = paired.newcombe_interval(0, 0, 0, 20)
    assert high == pytest.approx(-low)
    assert high == pytest.approx(math.sqrt(2) * 0.1611 / math.sqrt(2), abs=1e-4)


def brute_z(worse, better, n, delta):
    """The score with the constrained maximum found by search instead of by formula."""

    def loss(q):
        cells = ((worse, q + delta), (better, q), (n - worse - better, 1 - 2 * q - delta))
        return -sum(k * math.log(max(p, 1e-300)) for k, p in cells if k)

    found = minimize_scalar(
        loss, bounds=(max(0.0, -delta), (1 - delta) / 2), method="bounded", options={"xatol": 1e-13}
    )
    return (worse - better - n * delta) / math.sqrt(n * (2 * found.x + delta * (1 - delta)))


@pytest.mark.parametrize(("worse", "better", "n"), [(9, 3, 32), (0, 4, 30), (5, 0, 40), (20, 20, 41)])
@pytest.mark.parametrize("delta", [-0.4, -0.05, 0.02, 0.3])
def test_tango_z_maximises_the_constrained_likelihood(worse, better, n, delta):
    assert paired.tango_z(worse, better, n, delta) == pytest.approx(
        brute_z(worse, better, n, delta), abs=2e-4
    )


def test_without_discordance_the_score_is_that_of_one_proportion():
    # z(Δ) = −√(nΔ/(1−Δ)), so |z| = 1.96 at Δ = z²/(n + z²)
    assert paired.tango_z(0, 0, 100, 0.05) == pytest.approx(-math.sqrt(5 / 0.95))
    z2 = norm.ppf(0.975) ** 2
    assert paired.tango_interval(0, 0, 100) == pytest.approx((-z2 / (100 + z2), z2 / (100 + z2)))
    assert paired.noninferiority_p(0, 0, 100, 0.05) == pytest.approx(norm.cdf(-math.sqrt(5 / 0.95)))


def test_tango_where_everything_changed():
    assert paired.tango_z(0, 0, 10, 0.0) == 0.0
    assert paired.tango_z(3, 0, 10, 1.0) == -math.inf
    assert paired.tango_z(0, 3, 10, -1.0) == math.inf
    low, high = paired.tango_interval(5, 0, 5)
    assert high == 1.0
    assert paired.tango_z(5, 0, 5, low) == pytest.approx(norm.ppf(0.975))
    assert paired.tango_interval(0, 5, 5) == pytest.approx((-1.0, -low))


@pytest.mark.parametrize(("worse", "better"), [(6, 16), (0, 0), (5, 5), (12, 1), (0, 3)])
def test_mcnemar_equals_statsmodels(worse, better):
    expected = mcnemar([[10, worse], [better, 10]], exact=True).pvalue
    assert paired.mcnemar_exact(worse, better) == pytest.approx(expected, abs=1e-12)


def test_mcnemar_published_and_by_hand():
    assert paired.mcnemar_exact(6, 16) == pytest.approx(0.052479, abs=1e-6)  # Fagerland et al. 2017
    assert paired.harm_p(3, 0) == pytest.approx(1 / 8)
    assert paired.harm_p(3, 1) == pytest.approx(5 / 16)
    assert paired.harm_p(0, 4) == 1.0


def test_holm_by_hand_and_against_statsmodels():
    assert paired.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    ps = [0.2, 0.001, 0.9, 0.04, 0.04, 0.012]
    assert paired.holm(ps) == pytest.approx(multipletests(ps, method="holm")[1])
    assert paired.holm([]) == []


def test_detectable_margin_has_its_power():
    rng = np.random.default_rng(0)
    for n, psi in ((100, 0.1), (300, 0.05)):
        margin = paired.detectable_margin(n, psi)
        draws = rng.multinomial(n, [psi / 2, psi / 2, 1 - psi], size=1500)
        power = np.mean([paired.noninferiority_p(w, b, n, margin) <= 0.05 for w, b, _ in draws])
        assert 0.76 < power < 0.88


def test_detectable_margin_at_its_ends():
    assert paired.detectable_margin(0, 0.1) is None
    assert paired.detectable_margin(0.5, 1.0) == 1.0  # an effective n
    z2 = norm.ppf(0.95) ** 2  # nothing changed: z_α² = nΔ/(1−Δ)
    assert paired.detectable_margin(300, 0.0) == pytest.approx(z2 / (300 + z2), rel=1e-5)
    assert paired.detectable_margin(1000, 0.05) < paired.detectable_margin(200, 0.05)


def test_size_of_the_test_and_coverage_of_the_intervals():
    rng = np.random.default_rng(7)
    n, worse, better, both = 150, 0.08, 0.03, 0.75
    draws = rng.multinomial(n, [worse, better, both, 1 - worse - better - both], size=1000)
    size = np.mean([paired.noninferiority_p(w, b, n, worse - better) <= 0.05 for w, b, _, _ in draws])
    assert 0.03 < size < 0.07
    tango = [paired.tango_interval(w, b, n) for w, b, _, _ in draws]
    newcombe = [paired.newcombe_interval(a, w, b, d) for w, b, a, d in draws]
    for found in (tango, newcombe):
        assert 0.925 < np.mean([low <= worse - better <= high for low, high in found]) < 0.985


@pytest.mark.parametrize(
    ("p", "harm", "low", "word"),
    [
        (0.01, 0.0, -0.02, "non-inferior"),
        (0.05, 0.02, 0.01, "non-inferior"),  # real, but shown to be below the margin
        (0.9, 0.10, 0.03, "inferior"),
        (0.2, 0.04, 0.01, "insufficient evidence"),  # real, but not beyond the margin
        (0.9, 0.10, -0.01, "insufficient evidence"),  # large, but perhaps an accident
    ],
)
def test_outcome(p, harm, low, word):
    assert paired.outcome(p, harm, low, 0.05, 0.05) == word
