"""Agreement and skill, against published figures, other libraries and counting by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.metrics import cohen_kappa_score

from guardkeel.curation.agreement import agreement, agreement_by, alpha, drift, kappa, skill
from guardkeel.curation.jury.dawid_skene import dawid_skene

# Krippendorff (2011), Computing Krippendorff's alpha-reliability, section C: four observers, twelve units.
KRIPPENDORFF = [
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
]


def table(rows):
    return np.array([[-1 if c == "." else int(c) - 1 for c in r.split()] for r in rows]).T


def judges(n=400, accuracy=(0.95, 0.85, 0.7), missing=0.1, seed=0, prevalence=0.3):
    """Truth and votes of independent judges."""
    rng = np.random.default_rng(seed)
    truth = (rng.random(n) < prevalence).astype(np.int64)
    votes = np.stack([np.where(rng.random(n) < a, truth, 1 - truth) for a in accuracy], axis=1)
    votes[rng.random(votes.shape) < missing] = -1
    return truth, votes


def test_alpha_of_the_published_example():
    assert alpha(table(KRIPPENDORFF))[0] == pytest.approx(0.743, abs=5e-4)


def test_alpha_by_counting_pairs():
    _, votes = judges(60)
    pairs = {}
    for item in votes:
        given = [v for v in item if v >= 0]
        for a, b in itertools.permutations(range(len(given)), 2):
            key = (given[a], given[b])
            pairs[key] = pairs.get(key, 0) + 1 / (len(given) - 1)
    n = sum(pairs.values())
    totals = {c: sum(v for (a, _), v in pairs.items() if a == c) for c in (0, 1)}
    observed = sum(v for (a, b), v in pairs.items() if a != b)
    expected = sum(totals[a] * totals[b] for a in totals for b in totals if a != b)
    assert alpha(votes)[0] == pytest.approx(1 - (n - 1) * observed / expected)


def test_alpha_with_counts_is_alpha_of_the_drawn_items():
    _, votes = judges(30)
    counts = np.random.default_rng(1).integers(0, 3, (5, 30)).astype(float)
    drawn = [alpha(votes[np.repeat(np.arange(30), c.astype(int))])[0] for c in counts]
    assert alpha(votes, counts) == pytest.approx(drawn)


def test_alpha_is_undefined_where_one_value_alone_was_given():
    assert np.isnan(alpha(np.zeros((5, 3), dtype=np.int64))[0])
    found = agreement(np.zeros((5, 2), dtype=np.int64), ["a", "b"])
    assert found.alpha.value is None and "one label alone" in found.alpha.note
    none = agreement(np.full((4, 2), -1), ["a", "b"])
    assert none.alpha.note == "no item has two votes" and none.pairs[0].same.value is None
    assert agreement(np.zeros((0, 2), dtype=np.int64), ["a", "b"]).alpha.value is None


def test_kappa_is_cohens():
    _, votes = judges()
    a, b = votes[:, 0], votes[:, 1]
    both = (a >= 0) & (b >= 0)
    assert kappa(a, b)[0] == pytest.approx(cohen_kappa_score(a[both], b[both]))


def test_intervals_hold_the_value_and_widen_for_groups():
    _, votes = judges(120)
    votes = np.repeat(votes, 3, axis=0)
    alone = agreement(votes, ["a", "b", "c"])
    grouped = agreement(votes, ["a", "b", "c"], groups=np.repeat(np.arange(120), 3))
    for found in (alone, grouped):
        assert found.alpha.low <= found.alpha.value <= found.alpha.high
    assert grouped.alpha.high - grouped.alpha.low > 1.3 * (alone.alpha.high - alone.alpha.low)
    assert alone == agreement(votes, ["a", "b", "c"])  # the seed decides the draws
    assert alone.votes["a"]["abstained"] == int((votes[:, 0] < 0).sum())


def test_the_bootstrap_covers_the_truth():
    wide = alpha(judges(40_000, missing=0)[1])[0]
    inside = 0
    for seed in range(40):
        found = agreement(judges(150, missing=0, seed=seed + 1)[1], ["a", "b", "c"], draws=200).alpha
        inside += found.low <= wide <= found.high
    assert inside >= 33  # 95 % of 40, less what chance may take


def test_by_source():
    _, votes = judges(90)
    sources = ["x", "y", "y"] * 30
    found = agreement_by(votes, ["a", "b", "c"], {"source": sources})["source"]
    assert [found[s].n for s in ("x", "y")] == [30, 60]
    assert found["x"].alpha.value == pytest.approx(alpha(votes[::3])[0])


def test_skill_leaves_abstentions_out_and_counts_them():
    truth = np.array([1, 1, 1, 0, 0, 0])
    votes = np.array([1, 0, -1, 0, 0, -1])
    found = skill("j", votes, truth, "people")
    assert found.sensitivity.value == 0.5 and found.sensitivity.n == 2
    assert found.specificity.value == 1.0 and found.abstained.value == pytest.approx(1 / 3)
    assert skill("j", votes[:3], truth[:3], "people").specificity.value is None


def test_drift_is_found_where_there_is_some():
    _, votes = judges(1200, accuracy=(0.9, 0.9, 0.9), missing=0)
    steady = drift(votes, ["a", "b", "c"], size=300)
    assert all(d.p_agreement > 0.05 and len(d.batches) == 4 for d in steady)
    votes[900:, 0] = 1 - votes[900:, 0]
    turned = drift(votes, ["a", "b", "c"], size=300)
    assert turned[0].p_agreement < 1e-6 and turned[0].batches[3].agrees.value < 0.5
    assert drift(votes[:100], ["a", "b", "c"], size=300)[0].p_votes is None


# Dawid-Skene


def observed(votes, prevalence, confusion):
    """The likelihood of the votes by summing over every truth of each item."""
    total = 0.0
    for item in votes:
        total += np.log(
            sum(
                prevalence[t] * np.prod([confusion[j][t][v] for j, v in enumerate(item) if v >= 0])
                for t in range(len(prevalence))
            )
        )
    return total


def test_posterior_is_bayes_rule_by_enumeration():
    _, votes = judges(50)
    fitted = dawid_skene(votes, pseudo=0.0, tolerance=1e-13, steps=5000)
    for i, item in enumerate(votes):
        joint = [
            fitted.prevalence[t] * np.prod([fitted.confusion[j, t, v] for j, v in enumerate(item) if v >= 0])
            for t in (0, 1)
        ]
        assert fitted.posterior[i, 1] == pytest.approx(joint[1] / sum(joint), abs=1e-4)


def test_em_climbs_to_the_maximum_that_a_plain_search_finds():
    _, votes = judges(200, missing=0.05)
    fitted = dawid_skene(votes, pseudo=0.0, tolerance=1e-12, steps=5000)
    assert np.all(np.diff(fitted.likelihood) >= -1e-9)
    assert fitted.likelihood[-1] == pytest.approx(
        observed(votes, fitted.prevalence, fitted.confusion), abs=1e-6
    )

    def loss(x):
        p = 1 / (1 + np.exp(-x))
        confusion = [[[p[1 + j], 1 - p[1 + j]], [1 - p[4 + j], p[4 + j]]] for j in range(3)]
        return -observed(votes, (1 - p[0], p[0]), confusion)

    start = np.array([-0.8, 2.5, 1.5, 1.0, 2.5, 1.5, 1.0])
    searched = minimize(loss, start, method="L-BFGS-B")
    assert fitted.likelihood[-1] == pytest.approx(-searched.fun, abs=1e-3)


def test_it_finds_who_is_good_and_beats_the_majority():
    truth, votes = judges(3000, accuracy=(0.97, 0.65, 0.65), missing=0)
    fitted = dawid_skene(votes)
    right = ((fitted.posterior[:, 1] > 0.5) == truth).mean()
    majority = ((votes.sum(axis=1) > 1) == truth).mean()
    assert right > majority + 0.05
    assert fitted.confusion[0, 1, 1] > fitted.confusion[1, 1, 1] + 0.1
    assert fitted.prevalence[1] == pytest.approx(0.3, abs=0.08) and fitted.converged


def test_known_labels_are_kept_and_anchor_the_rest():
    truth, votes = judges(600, accuracy=(0.2, 0.3, 0.3), missing=0)  # worse than chance, all of them
    known = np.where(np.arange(600) < 200, truth, -1)
    anchored = dawid_skene(votes, known=known)
    assert np.array_equal(anchored.posterior[:200, 1], truth[:200])
    assert anchored.confusion[:, 1, 1].max() < 0.5 < dawid_skene(votes).confusion[:, 1, 1].max()
    assert ((anchored.posterior[200:, 1] > 0.5) == truth[200:]).mean() > 0.8
    assert np.all(np.diff(anchored.likelihood) >= -1e-9)


def test_known_labels_do_not_move_the_prevalence():
    truth, votes = judges(2000, missing=0, prevalence=0.1)
    more, theirs = judges(2000, missing=0, prevalence=0.9, seed=1)
    known = np.concatenate([np.full(2000, -1), more])
    fitted = dawid_skene(np.concatenate([votes, theirs]), known=known)
    assert fitted.prevalence[1] == pytest.approx(truth.mean(), abs=0.03)


def test_items_without_votes_and_sets_without_items():
    votes = np.array([[1, 1], [0, 0], [-1, -1]])
    fitted = dawid_skene(votes)
    assert fitted.posterior[2] == pytest.approx(fitted.prevalence, abs=1e-3)
    assert dawid_skene(np.zeros((0, 2), dtype=np.int64)).posterior.shape == (0, 2)
    with pytest.raises(ValueError, match="votes must be"):
        dawid_skene(np.array([[2, 0]]))
