"""The numbers of a leaderboard, by hand: means, strict F1, fixed FPR, differences, agreement, speed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from guardkeel.evaluation.items import ItemMeta
from guardkeel.evaluation.leaderboard.agreement import category_agreement
from guardkeel.evaluation.leaderboard.cells import f1_strict
from guardkeel.evaluation.leaderboard.differences import differences
from guardkeel.evaluation.leaderboard.judged import Failed, Info, Items, Judged, Timing
from guardkeel.evaluation.leaderboard.macro import macro
from guardkeel.evaluation.leaderboard.operating import Scores, at_fixed_fpr
from guardkeel.evaluation.leaderboard.speed import speed
from guardkeel.evaluation.leaderboard.table import columns_of, tabulate
from guardkeel.guards.base import Verdict
from guardkeel.records import Estimate


def estimate(value, low=None, high=None, n=10):
    return Estimate(value=value, low=low, high=high, n=n)


def items(n=80, suite="s", *, side="prompt", unsafe=lambda k: k % 2 == 0, test=lambda k: k % 4 < 3, **meta):
    """Items of one suite; three of four are test items."""
    metas = [
        ItemMeta(f"{suite}/e{k}#{side}", suite, side, "unsafe" if unsafe(k) else "safe", **meta)
        for k in range(n)
    ]
    return Items(metas, np.array([test(k) for k in range(n)]))


def together(*several):
    return Items([m for i in several for m in i.metas], np.concatenate([i.test for i in several]))


def guard(name, scores, *, threshold=0.5, categories=None, timing=None):
    """A guard with these scores: None is unscored, "absent" is no row at all."""
    verdicts = [
        None
        if s == "absent"
        else Verdict(None, unscored="silent")
        if s is None
        else Verdict(s, categories=tuple(categories[k]) if categories else ())
        for k, s in enumerate(scores)
    ]
    return Judged(Info(name, name, threshold), verdicts, timing)


def right(items, wrong=()):
    """Scores that are right but on these items."""
    return [0.9 if u != (k in wrong) else 0.1 for k, u in enumerate(items.unsafe)]


# means


def test_the_mean_counts_each_suite_once_and_its_interval_is_movers():
    found = macro([estimate(0.5, 0.4, 0.7, n=1000), estimate(1.0, 0.8, 1.0, n=10)])
    assert found.value == 0.75
    assert found.n == 1010
    assert found.low == pytest.approx(0.75 - math.hypot(0.1, 0.2) / 2)
    assert found.high == pytest.approx(0.75 + math.hypot(0.2, 0.0) / 2)


def test_a_mean_of_what_is_partly_missing_is_no_mean():
    assert macro([estimate(0.5, 0.4, 0.6), Estimate(value=None, n=0, note="one class")]).value is None
    assert macro([]).value is None
    assert macro([estimate(0.5, 0.4, 0.6), estimate(0.7)]).low is None


def test_movers_interval_covers_the_mean_of_suites():
    """20 items in each of 5 suites with recalls from 0.6 to 1: coverage of 95% intervals."""
    from guardkeel.evaluation.intervals import proportion

    rng, truth = np.random.default_rng(0), np.array([0.6, 0.75, 0.9, 0.97, 1.0])
    covered = 0
    for _ in range(600):
        found = macro([proportion(rng.random(20) < p, empty="") for p in truth])
        covered += found.low <= truth.mean() <= found.high
    assert 0.92 <= covered / 600 <= 0.99


# F1


def test_an_unscored_item_is_wrong_in_strict_f1():
    unsafe = np.array([True, True, True, False, False, False])
    scores = np.array([0.9, 0.2, np.nan, np.nan, 0.8, 0.1])  # hit, miss, lost, lost, false alarm, right
    found = f1_strict(scores, unsafe, 0.5)
    assert found.value == pytest.approx(2 * 1 / (2 * 1 + 2 + 2))  # misses: 1 + 1 lost; alarms: 1 + 1 lost
    said = np.where(np.isnan(scores), ~unsafe, scores >= 0.5)
    assert found.value == pytest.approx(f1_score(unsafe, said))
    assert found.low < found.value < found.high


@pytest.mark.parametrize(
    ("unsafe", "scores", "why"),
    [
        ([True, True], [0.9, 0.1], "no safe items"),
        ([False, False], [0.9, 0.1], "no unsafe items"),
        ([True, False], [np.nan, np.nan], "nothing was scored"),
        ([], [], "no items"),
    ],
)
def test_f1_is_never_invented(unsafe, scores, why):
    found = f1_strict(np.array(scores, dtype=float), np.array(unsafe, dtype=bool), 0.5)
    assert (found.value, found.note) == (None, why)


# a fixed FPR


def points(values, unsafe):
    return Scores(np.array(values, dtype=float), np.array(unsafe, dtype=bool), np.arange(len(values)))


NONE = points([], [])


def test_the_threshold_lets_through_the_allowed_false_positives_and_no_more():
    safe = points([k / 100 for k in range(100)], [False] * 100)  # 0.00 … 0.99
    test = points([0.5, 0.945, 0.97, np.nan, 0.2, 0.96], [True, True, True, True, False, False])
    found = at_fixed_fpr(safe, NONE, test, 0.05)
    assert found.threshold == pytest.approx(0.945)  # between 0.94 and the five that may be flagged
    assert (found.chosen_on, found.n_chosen) == ("suite", 100)
    assert found.recall.value == pytest.approx(2 / 3)  # unscored items are in no rate
    assert found.fpr.value == 0.5
    assert found.recall.low <= found.recall.value <= found.recall.high


def test_few_safe_items_of_a_suite_leave_the_threshold_to_all_suites():
    few, many = points([0.1] * 30, [False] * 30), points([k / 40 for k in range(40)], [False] * 40)
    found = at_fixed_fpr(few, many, points([0.9], [True]), 0.05)
    assert (found.chosen_on, found.n_chosen) == ("all suites", 40)
    assert found.fpr.value is None
    assert found.recall.value == 0


def test_too_few_safe_items_leave_no_threshold_at_all():
    few = points([0.1] * 19 + [np.nan] * 5, [False] * 24)
    found = at_fixed_fpr(few, few, points([0.9], [True]), 0.05)
    assert (found.threshold, found.chosen_on, found.recall.value) == (None, "nothing", None)
    assert "20 are needed" in found.recall.note


def test_a_guard_that_says_yes_too_often_flags_nothing_at_the_fixed_fpr():
    safe = points([1.0] * 20 + [0.0] * 80, [False] * 100)
    found = at_fixed_fpr(safe, safe, points([1.0, 0.0], [True, False]), 0.05)
    assert found.threshold > 1
    assert found.recall.value == 0


def test_the_interval_at_a_fixed_fpr_holds_the_thresholds_own_uncertainty():
    rng = np.random.default_rng(1)
    safe, unsafe = rng.normal(0.3, 0.1, 120).clip(0, 1), rng.normal(0.5, 0.1, 2000).clip(0, 1)
    found = at_fixed_fpr(points(safe, [False] * 120), NONE, points(unsafe, [True] * 2000), 0.05, seed=3)
    from guardkeel.evaluation.intervals import wilson

    low, high = wilson(found.recall.value * 2000, 2000)
    assert found.recall.high - found.recall.low > 2 * (high - low)
    again = at_fixed_fpr(points(safe, [False] * 120), NONE, points(unsafe, [True] * 2000), 0.05, seed=3)
    assert again == found


# differences


def test_differences_are_paired_and_exact():
    found = items(400, test=lambda k: True)
    a = guard("a", right(found, wrong=range(0, 40, 2)))  # 20 misses
    b = guard("b", right(found, wrong=[*range(0, 40, 2), *range(100, 130, 2), *range(201, 210, 2)]))
    said = {
        d.metric: d
        for d in differences([a, b], a, found, columns_of(found), ["s"], draws=400)
        if d.suite == "*"
    }
    recall, fpr, f1 = said["recall"], said["fpr"], said["f1_strict"]
    assert (recall.guard, recall.against, recall.worse, recall.better) == ("b", "a", 15, 0)
    assert recall.difference.value == pytest.approx(-15 / 200)
    assert recall.p == pytest.approx(binomtest(15, 15).pvalue)
    assert (recall.word, fpr.word) == ("worse", "not settled")  # 5 of 5: p 0.0625
    assert fpr.p == pytest.approx(binomtest(5, 5).pvalue)
    labels = found.unsafe
    truth = [f1_score(labels, g.scores >= 0.5) for g in (b, a)]
    assert (f1.value, f1.value_against) == pytest.approx(tuple(truth))
    assert f1.difference.low < f1.difference.value < f1.difference.high < 0
    assert f1.word == "worse"
    assert said["auroc"].word == "worse"
    assert said["unscored"].word == "not settled"


def test_holm_corrects_over_the_guards():
    found = items(200, test=lambda k: True)
    best = guard("best", right(found))
    # eight misses: p = 2 · 2⁻⁸ = 0.0078, after Holm over seven guards 0.055
    others = [guard(f"g{k}", right(found, wrong=range(0, 16, 2))) for k in range(7)]
    said = [
        d
        for d in differences([best, *others], best, found, columns_of(found), ["s"], draws=200)
        if (d.metric, d.suite) == ("recall", "*")
    ]
    assert [d.p for d in said] == pytest.approx([2 * 2.0**-8] * 7)
    assert [d.p_holm for d in said] == pytest.approx([7 * 2 * 2.0**-8] * 7)
    assert {d.word for d in said} == {"not settled"}


def test_items_that_a_guard_did_not_judge_are_in_no_pair():
    found = items(40, test=lambda k: True)
    scores = right(found, wrong=[0, 2])
    scores[0] = "absent"
    scores[1] = None
    a, b = guard("a", right(found)), guard("b", scores)
    said = {
        d.metric: d
        for d in differences([a, b], a, found, columns_of(found), ["s"], draws=200)
        if d.suite == "*"
    }
    assert (said["recall"].n, said["recall"].worse) == (19, 1)
    assert (said["unscored"].n, said["unscored"].worse) == (39, 1)
    assert said["f1_strict"].n == 39
    assert said["f1_strict"].worse == 2  # the miss and the unscored one


def test_a_guard_is_no_better_than_its_double():
    found = items(60, test=lambda k: True)
    a, b = guard("a", right(found, wrong=[3])), guard("b", right(found, wrong=[3]))
    for d in differences([a, b], a, found, columns_of(found), ["s"], draws=200):
        assert d.difference.value in (0, None)
        assert d.word in ("not settled", "not measured")
        assert d.p in (1.0, None)


# the table


def test_one_class_suites_have_the_rates_of_their_class_and_no_other():
    found = together(
        items(40, "both"), items(40, "harm", unsafe=lambda k: True), items(40, "calm", unsafe=lambda k: False)
    )
    table = tabulate([guard("a", right(found, wrong=[0, 3])), guard("b", right(found))], found, [], draws=200)
    assert [(c.name, c.classes) for c in table.columns] == [
        ("both", "both"),
        ("harm", "unsafe"),
        ("calm", "safe"),
    ]
    for row in table.guards:
        cells = {c.suite: c for c in row.cells}
        harm, calm = cells["harm"].behaviour, cells["calm"].behaviour
        assert (harm.recall.value, harm.fpr.value, harm.f1.value) == (1.0, None, None)
        assert (calm.recall.value, calm.fpr.value, calm.f1.value) == (None, 0.0, None)
        assert cells["harm"].f1_strict.value is None
        means = {m.metric: m for m in row.macro if m.side == "*"}
        assert means["f1_strict"].columns == ["both"]
        assert means["recall"].columns == ["both", "harm"]
        assert means["fpr"].columns == ["both", "calm"]
    assert [g.name for g in table.guards] == ["b", "a"]
    assert [g.rank for g in table.guards] == [1, 2]
    assert table.against == "b"


def test_only_columns_with_a_number_for_every_guard_are_averaged():
    found = together(items(40, "one"), items(40, "two"))
    silent = [*right(items(40, "one")), *[None] * 40]
    table = tabulate([guard("a", right(found)), guard("b", silent)], found, [], draws=200)
    a, b = table.guards
    assert next(m for m in a.macro if m.metric == "f1_strict").columns == ["one"]
    assert table.not_averaged["f1_strict"] == {"two": "b"}
    assert next(c for c in a.cells if c.suite == "two").f1_strict.value == 1  # shown all the same
    assert next(c for c in b.cells if c.suite == "two").behaviour.unscored.value == 1
    assert next(m for m in b.macro if m.metric == "unscored").estimate.value == 0.5


def test_a_guard_without_any_verdict_has_failed_and_hides_nothing():
    found = items(40)
    table = tabulate(
        [guard("mute", [None] * 40), Failed("lost", "./lost", "no such folder"), guard("a", right(found))],
        found,
        [],
        draws=200,
    )
    assert [(g.name, g.status, g.rank) for g in table.guards] == [
        ("a", "scored", 1),
        ("mute", "failed", None),
        ("lost", "failed", None),
    ]
    assert table.guards[1].reason == "no item was scored: silent (30 of 30)"
    assert table.differences == []
    assert next(m for m in table.guards[0].macro if m.metric == "f1_strict").columns == ["s"]


def test_unscored_items_cost_rank():
    """A guard that is right on the half that it scores does not outrank one that is nearly right on all."""
    found = items(80)
    half = [s if k % 8 < 4 else None for k, s in enumerate(right(found))]
    table = tabulate(
        [guard("half", half), guard("whole", right(found, wrong=[0, 1, 2]))], found, [], draws=200
    )
    assert [g.name for g in table.guards] == ["whole", "half"]
    assert next(m for m in table.guards[1].macro if m.metric == "f1").estimate.value == 1


def test_without_two_classes_recall_or_fpr_gives_the_rank():
    found = items(40, unsafe=lambda k: False)
    table = tabulate([guard("a", right(found, wrong=[0, 1])), guard("b", right(found))], found, [], draws=200)
    assert (table.ranked_by, [g.name for g in table.guards]) == ("fpr", ["b", "a"])


def test_a_guard_that_flags_everything_does_not_lead_where_each_suite_has_one_class():
    found = together(items(40, "harm", unsafe=lambda k: True), items(40, "calm", unsafe=lambda k: False))
    everything, some = guard("everything", [0.9] * 80), guard("some", right(found, wrong=range(10)))
    table = tabulate([everything, some], found, [], draws=200)
    assert (table.ranked_by, table.ranked_on) == ("f1_strict", "pooled")
    assert [g.name for g in table.guards] == ["some", "everything"]
    [f1] = [d for d in table.differences if d.metric == "f1_strict"]
    labels = found.unsafe[found.test]
    truth = [f1_score(labels, (g.scores >= 0.5)[found.test]) for g in (everything, some)]
    assert (f1.suite, f1.value, f1.value_against) == ("*", *map(pytest.approx, truth))
    assert f1.word == "worse"


def test_sides_have_columns_and_means_of_their_own():
    found = together(items(40, side="prompt"), items(40, side="response"))
    table = tabulate([guard("a", right(found, wrong=[0, 1]))], found, [], draws=200)
    assert [c.name for c in table.columns] == ["s prompt", "s response"]
    f1 = {m.side: m.estimate.value for m in table.guards[0].macro if m.metric == "f1_strict"}
    assert f1["response"] == 1 > f1["prompt"]
    assert f1["*"] == pytest.approx((f1["prompt"] + f1["response"]) / 2)
    assert [(c.suite, c.side) for c in table.guards[0].cells][:3] == [
        ("*", "*"),
        ("*", "prompt"),
        ("*", "response"),
    ]


def test_the_table_is_the_same_every_time():
    found = together(items(60, "one"), items(60, "two", side="response"))
    guards = [guard("a", right(found, wrong=[0, 5])), guard("b", right(found, wrong=[1, 2, 70]))]
    assert tabulate(guards, found, [], draws=200) == tabulate(guards, found, [], draws=200)


# categories


def test_category_agreement_goes_through_the_crosswalk():
    labels = [("Violence",), ("Malware", "Fraud/Deception"), ("Violence",), ("my own",), ("Violence",), ()]
    named = [("Violent Crimes",), ("Malware",), ("Hate",), ("Violence",), (), ("Violence",)]
    metas = [ItemMeta(f"s/{k}#prompt", "s", "prompt", "unsafe", c) for k, c in enumerate(labels)]
    metas += [ItemMeta("s/6#prompt", "s", "prompt", "safe", ("Violence",))]
    found = Items(metas, np.ones(7, dtype=bool))
    one = guard("a", [0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9], categories=[*named, ("Violence",)])
    agreed = category_agreement(one, found, 2)
    # 0 to 2 and 4 have a label with a home; 4 names nothing; "my own" has no home; 6 is safe
    assert (agreed.n_labelled, agreed.n_flagged, agreed.n_compared) == (4, 4, 3)
    assert agreed.exact.value == pytest.approx(1 / 3)
    assert agreed.overlap.value == pytest.approx(2 / 3)
    assert {k: (e.value, e.n) for k, e in agreed.by_category.items()} == {
        "Violence": (0.5, 2),
        "Malware": (1.0, 1),
        "Fraud/Deception": (0.0, 1),
    }
    assert agreed.macro_recall.value == 0.5  # only Violence has two items
    pairs = {(c.labelled, c.named): c.n for c in agreed.confusion}
    assert pairs == {
        ("Violence", "Violence"): 1,
        ("Violence", "Hate/Identity Hate"): 1,
        ("Malware", "Malware"): 1,
        ("Fraud/Deception", "Malware"): 1,
    }


def test_agreement_is_of_flagged_items_and_of_guards_that_name_something():
    metas = [ItemMeta(f"s/{k}#prompt", "s", "prompt", "unsafe", ("Violence",)) for k in range(3)]
    found = Items(metas, np.ones(3, dtype=bool))
    agreed = category_agreement(guard("a", [0.9, 0.2, None], categories=[("Violence",)] * 3), found, 2)
    assert (agreed.n_labelled, agreed.n_flagged, agreed.n_compared) == (3, 1, 1)
    assert category_agreement(guard("b", [0.9] * 3), found, 2) is None


def test_a_users_own_categories_agree_with_themselves():
    metas = [ItemMeta("s/0#prompt", "s", "prompt", "unsafe", ("Account takeover",))]
    found = Items(metas, np.ones(1, dtype=bool))
    agreed = category_agreement(guard("a", [0.9], categories=[("Account takeover",)]), found, 2)
    assert agreed.exact.value == 1


# speed


def test_amortised_latency_is_over_items_and_not_over_batches():
    found = speed(Timing([(99, 0.99), (1, 5.0)], tokens=599))
    assert found.items_per_second == pytest.approx(100 / 5.99)
    assert found.tokens_per_second == pytest.approx(100)
    assert found.amortised.p50.value == pytest.approx(0.01)
    assert found.amortised.p99.value == pytest.approx(0.01)  # 99 of 100 items
    assert speed(Timing([(98, 0.98), (2, 10.0)])).amortised.p99.value == pytest.approx(5.0)
    assert speed(Timing([])) is None
    assert speed(Timing([(10, 1.0)])).amortised.p50.low is None


def test_single_items_have_an_interval_between_order_statistics():
    found = speed(Timing([(1, 1.0)], alone=[k / 100 for k in range(1, 101)])).alone
    assert (found.p50.value, found.p99.value) == (0.5, 0.99)
    assert (found.p50.low, found.p50.high) == (0.4, 0.61)  # ranks 40 and 61 of 100
    assert found.p99.high is None
    assert "too few" in found.p99.note
