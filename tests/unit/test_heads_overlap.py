"""Agreement of rankings, control groups, and the effect beside them, by hand."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from guardkeel.errors import DataError
from guardkeel.evaluation.items import ItemMeta
from guardkeel.heads.controls import Trial, trials
from guardkeel.heads.effects import beside, effect
from guardkeel.heads.overlap import moves, ranks, reliability, shared, spearman, stability


def test_spearman_with_ties_and_holes():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, (4, 6)) * 1.0, rng.random((4, 6))
    assert spearman(a, b) == pytest.approx(spearmanr(a.ravel(), b.ravel()).statistic)
    hole = a.copy()
    hole[0, 0] = np.nan
    assert spearman(hole, b) == pytest.approx(spearmanr(a.ravel()[1:], b.ravel()[1:]).statistic)
    assert spearman(np.ones((2, 2)), b[:2, :2]) is None
    with pytest.raises(DataError, match="2 × 2 and 2 × 3"):
        spearman(a[:2, :2], b[:2, :3])


def test_what_two_rankings_share():
    a = np.arange(20.0).reshape(4, 5)
    b = a.copy()
    b[3, 4] = -1  # the best of a is the last of b
    found = shared(a, b, 5)
    assert (found.k, found.count, found.chance) == (5, 4, 25 / 20)
    assert found.p == pytest.approx((5 * 15 + 1) / 15504)  # 4 or 5 of 5, of 20 choose 5
    assert shared(a, a, 99).count == 20 and shared(a, a, 99).p == 1
    assert list(ranks(a)[3]) == [5, 4, 3, 2, 1]
    move = moves(a, b, 3)[0]
    assert (move.head, move.rank_before, move.rank_after) == ((3, 4), 1, 20)
    assert len(moves(a, b, 3)) == 4


def test_reliability_is_that_of_twice_as_many_prompts():
    """Parallel prompts: x = truth + noise of the same variance; n of them have reliability n / (n + 1)."""
    rng = np.random.default_rng(1)
    n, truth = 8, rng.standard_normal((40, 50))
    rows = truth + rng.standard_normal((n, 40, 50))
    found = reliability(lambda some: rows[some].mean(0), n, splits=10)
    assert found == pytest.approx(n / (n + 1), abs=0.02)
    noise = rng.standard_normal((n, 40, 50))
    assert abs(reliability(lambda some: noise[some].mean(0), n)) < 0.15
    assert reliability(lambda some: rows[some].mean(0), 3) is None


def test_stability():
    scores = np.zeros((6, 2, 3))
    scores[:, 0, 0] = 5
    scores[:3, 1, 1], scores[3:, 1, 2] = 1, 1.1
    found = stability(scores, 2)
    assert found[0, 0] == 1 and found.sum() == pytest.approx(2)
    assert 0.2 < found[1, 1] < 0.8 and found[1, 1] + found[1, 2] == pytest.approx(1)


def test_controls_are_other_heads_and_grow():
    group = [(3, 1), (0, 2), (3, 0)]
    made = trials(group, (5, 4), 3, seed=7)
    assert [t.heads for t in made[:3]] == [((3, 1),), ((3, 1), (0, 2)), tuple(group)]
    assert len({t.name for t in made}) == len(made) == 3 + 2 * 3 * 3
    for kind in ("random", "matched"):
        for draw in range(3):
            mine = [t for t in made if (t.kind, t.draw) == (kind, draw)]
            assert [len(t.heads) for t in mine] == [1, 2, 3]
            assert mine[2].heads[:2] == mine[1].heads
            assert len(set(mine[2].heads)) == 3 and not set(mine[2].heads) & set(group)
            if kind == "matched":
                assert [layer for layer, _ in mine[2].heads] == [3, 0, 3]
    assert made == trials(group, (5, 4), 3, seed=7) != trials(group, (5, 4), 3, seed=8)
    assert made[: 3 + 6] == trials(group, (5, 4), 1, seed=7)  # a draw is the same whatever the others are
    few = trials([(0, 0), (0, 1)], (1, 3), 1)  # one other head: no pair
    assert [t.name for t in few] == ["found-0-1", "found-0-2", "random-0-1", "matched-0-1"]


def items(n=40):
    return [ItemMeta(f"s/{i}#prompt", "s", "prompt", "unsafe" if i % 2 else "safe") for i in range(n)]


def test_effect_beside_controls():
    """The found head loses ten of twenty unsafe items, controls one or two; one leaves a safe item unscored."""
    asked = [
        Trial("found", 0, ((1, 1),)),
        *(Trial(kind, draw, ((draw, 0),)) for kind in ("random", "matched") for draw in range(3)),
    ]
    start = np.array([0.9 if i % 2 else 0.1 for i in range(40)])

    def ask(trial):
        scores = start.copy()
        if trial is None:
            return scores
        lost = 10 if trial.kind == "found" else 1 + trial.draw % 2
        scores[1 : 2 * lost : 2] = 0.2
        if (trial.kind, trial.draw) == ("random", 0):
            scores[0] = np.nan
        return scores

    found = effect(items(), asked, ask, 0.5)
    first = found.trial("found", 1)
    assert (found.unsafe, found.benign) == (20, 20)
    assert (first.recall.before, first.recall.after, first.fpr.after) == (1, 0.5, 0)
    assert first.recall.difference.value == -0.5
    assert first.recall.difference.low < -0.5 < first.recall.difference.high < -0.2
    assert first.recall.p == pytest.approx(2 / 2**10)
    assert found.trial("random", 1, 0).unscored.after == 1 / 40
    row = next(b for b in found.beside if (b.kind, b.metric) == ("random", "recall"))
    assert (row.low, row.high, row.draws) == (-0.1, -0.05, 3)
    assert row.mean == pytest.approx(-(1 + 2 + 1) / 60)
    assert row.excess.value == pytest.approx(-0.5 + 4 / 60)
    assert row.excess.high < -0.15 and row.p == 1 / 4
    safe = next(b for b in found.beside if (b.kind, b.metric) == ("matched", "fpr"))
    assert (safe.excess.value, safe.p) == (0, 1) and safe.excess.low < -0.1 and safe.excess.high > 0.1
    gone = next(b for b in found.beside if (b.kind, b.metric) == ("random", "unscored"))
    assert gone.high == pytest.approx(1 / 40)


def test_effect_without_benign_items_or_answers():
    unsafe = [i for i in items() if i.unsafe]
    asked = [Trial("found", 0, ((0, 0),)), Trial("random", 0, ((0, 1),))]
    found = effect(unsafe, asked, lambda t: np.full(20, 0.9 if t is None else np.nan), 0.5)
    first = found.trial("found", 1)
    assert first.fpr.difference.value is None and first.recall.difference.value is None
    assert first.unscored.after == 1 and first.unscored.difference.value == 1
    assert {b.metric for b in found.beside} == {"unscored"}
    assert beside(unsafe, np.full(20, 0.9), {}, [], 0.5) == []
