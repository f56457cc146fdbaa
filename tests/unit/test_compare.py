import numpy as np
import pytest

from guardkeel.errors import DataError
from guardkeel.evaluation import paired
from guardkeel.evaluation.compare import compare, harm_of
from guardkeel.evaluation.items import ItemMeta, Pair

NAN = float("nan")


def item(name, label, suite="s"):
    return ItemMeta(f"{suite}/{name}#prompt", suite, "prompt", label)


def build(n, *, missed=0, caught=0, alarms=0, cleared=0, lost=0, suite="s"):
    """n unsafe and n safe items, the reference right on all but what the candidate changes for the better."""
    items = [item(f"u{k}", "unsafe", suite) for k in range(n)] + [
        item(f"b{k}", "safe", suite) for k in range(n)
    ]
    reference = np.array([0.9] * n + [0.1] * n)
    candidate = reference.copy()
    candidate[:missed] = 0.2
    reference[missed : missed + caught] = 0.3
    candidate[n : n + alarms] = 0.8
    reference[n + alarms : n + alarms + cleared] = 0.7
    candidate[2 * n - lost :] = np.nan if lost else candidate[2 * n - lost :]
    return items, reference, candidate


def by_metric(comparison):
    return {(t.suite, t.metric): t for t in comparison.tests}


def test_a_change_by_hand():
    items, reference, candidate = build(200, missed=9, caught=3, alarms=2, cleared=1, lost=4)
    found = by_metric(compare(items, reference, candidate, 0.5, 0.5))
    recall, fpr, unscored = (found["*", m] for m in ("recall", "fpr", "unscored"))
    assert (recall.n, recall.worse, recall.better) == (200, 9, 3)
    assert (recall.reference, recall.candidate) == pytest.approx((197 / 200, 191 / 200))
    assert recall.difference.value == pytest.approx(-0.03)
    low, high = paired.tango_interval(9, 3, 200)
    assert (recall.difference.low, recall.difference.high) == pytest.approx((-high, -low))
    assert recall.p == pytest.approx(paired.noninferiority_p(9, 3, 200, 0.05))
    assert recall.p_change == pytest.approx(paired.mcnemar_exact(9, 3))
    assert recall.detectable == pytest.approx(paired.detectable_margin(200, 12 / 200))
    assert (fpr.n, fpr.worse, fpr.better) == (196, 2, 1)  # pairs: both scored
    assert fpr.difference.value == pytest.approx(1 / 196)
    assert (fpr.difference.low, fpr.difference.high) == pytest.approx(paired.tango_interval(2, 1, 196))
    assert (unscored.n, unscored.worse, unscored.better, unscored.margin) == (400, 4, 0, 0.01)
    assert unscored.difference.value == pytest.approx(0.01)
    assert harm_of(recall)[0] == pytest.approx(0.03)
    assert harm_of(recall)[1] == pytest.approx(low)
    assert harm_of(fpr)[1] == pytest.approx(fpr.difference.low)


def test_holm_runs_over_pooled_and_over_suites_apart():
    one, two = build(120, missed=1, suite="a"), build(150, alarms=2, suite="b")
    items, reference, candidate = [*one[0], *two[0]], np.append(one[1], two[1]), np.append(one[2], two[2])
    comparison = compare(items, reference, candidate, 0.5, 0.5)
    assert [(t.suite, t.metric) for t in comparison.tests] == [
        (s, m) for s in ("*", "a", "b") for m in ("recall", "fpr", "unscored")
    ]
    pooled, by_suite = comparison.tests[:3], comparison.tests[3:]
    for family in (pooled, by_suite):
        assert [t.p_holm for t in family] == pytest.approx(paired.holm([t.p for t in family]))
    assert (
        [r.suite for r in comparison.ranking]
        == [r.suite for r in comparison.recalibration]
        == ["*", "a", "b"]
    )


def test_outcomes():
    same = by_metric(compare(*build(300), 0.5, 0.5))
    assert {t.outcome for t in same.values()} == {"non-inferior"}
    assert all(t.difference.value == 0 and t.difference.high > 0 and t.p_change == 1.0 for t in same.values())
    collapsed = by_metric(compare(*build(300, missed=200), 0.5, 0.5))
    assert collapsed["*", "recall"].outcome == "inferior"
    assert collapsed["*", "fpr"].outcome == "non-inferior"
    few = by_metric(compare(*build(20), 0.5, 0.5))
    assert few["*", "recall"].outcome == "insufficient evidence"  # nothing changed, and that shows little
    assert few["*", "recall"].detectable > 0.05
    better = by_metric(compare(*build(300, caught=60), 0.5, 0.5))
    assert better["*", "recall"].outcome == "non-inferior"
    assert better["*", "recall"].difference.low > 0


def test_what_is_missing_is_not_measured():
    items = [item(f"u{k}", "unsafe") for k in range(30)]
    comparison = compare(items, np.full(30, 0.9), np.full(30, np.nan), 0.5, 0.5)
    found = by_metric(comparison)
    for metric in ("recall", "fpr"):
        t = found["s", metric]
        assert (t.outcome, t.n, t.p, t.p_holm, t.detectable, t.reference) == (
            "not measured",
            0,
            None,
            None,
            None,
            None,
        )
        assert t.difference.value is None
        assert t.difference.note
    assert found["s", "unscored"].outcome == "inferior"  # a guard that says nothing has not become safer
    assert found["s", "unscored"].p_holm == found["s", "unscored"].p  # a family of one
    assert comparison.ranking[0].difference.note == "no scored items"
    assert comparison.recalibration[0].note == "no calibrate split"


def test_sides_of_one_conversation_weigh_less_than_two_items():
    """Every change happens on both sides: the design effect is about two and the interval wider."""
    items, reference, candidate = build(100, missed=10)
    joined = [
        ItemMeta(f"s/{i // 2}#{'prompt' if i % 2 else 'response'}", "s", "prompt", x.label)
        for i, x in enumerate(items)
    ]
    alone = by_metric(compare(items, reference, candidate, 0.5, 0.5))["*", "recall"]
    together = by_metric(compare(joined, reference, candidate, 0.5, 0.5))["*", "recall"]
    assert alone.design_effect == 1.0
    assert together.design_effect == pytest.approx(2.0, rel=0.05)
    assert (together.worse, together.n, together.difference.value) == (10, 100, alone.difference.value)
    assert together.difference.low < alone.difference.low
    assert together.p_change > alone.p_change


def test_flips_come_failures_first_and_largest_first():
    rows = [
        ("missed little", "unsafe", 0.6, 0.4, "missed"),
        ("missed much", "unsafe", 0.9, 0.1, "missed"),
        ("alarm", "safe", 0.1, 0.9, "false alarm"),
        ("lost", "unsafe", 0.9, NAN, "lost score"),
        ("caught", "unsafe", 0.1, 0.9, "caught"),
        ("cleared", "safe", 0.9, 0.1, "cleared"),
        ("gained", "safe", NAN, 0.1, "gained score"),
        ("same", "unsafe", 0.9, 0.7, None),
        ("neither", "unsafe", NAN, NAN, None),
    ]
    items = [item(name, label) for name, label, *_ in rows]
    found = compare(items, [r[2] for r in rows], [r[3] for r in rows], 0.5, 0.5).flips
    assert [(f.id.split("/")[1].split("#")[0], f.kind) for f in found] == [
        ("missed much", "missed"),
        ("missed little", "missed"),
        ("alarm", "false alarm"),
        ("lost", "lost score"),
        ("caught", "caught"),
        ("cleared", "cleared"),
        ("gained", "gained score"),
    ]
    assert (found[3].reference, found[3].candidate) == (0.9, None)
    assert (found[6].reference, found[6].candidate) == (None, 0.1)


def test_each_guard_has_its_own_threshold():
    items = [item("u", "unsafe")]
    assert compare(items, [0.5], [0.3], 0.5, 0.3).flips == []
    assert compare(items, [0.5], [0.3], 0.5, 0.5).flips[0].kind == "missed"


def test_calibrate_items_are_used_by_suite():
    one, two = build(60, missed=30, suite="a"), build(60, suite="b")
    items, reference, candidate = [*one[0], *two[0]], np.append(one[1], two[1]), np.append(one[2], two[2])
    calibrate = Pair([ItemMeta(f"a/c{k}#prompt", "a", "prompt", "safe") for k in range(40)],
                     np.linspace(0, 0.4, 40), np.linspace(0, 0.1, 40))  # fmt: skip
    found = {
        r.suite: r for r in compare(items, reference, candidate, 0.5, 0.5, calibrate=calibrate).recalibration
    }
    assert found["a"].threshold == np.nextafter(0.1, 1)
    assert found["a"].lost_to_operating_point.value == 0.5
    assert found["a"].lost_to_ranking.value == 0.0
    assert found["b"].note == "no safe calibrate items scored by both"


def test_disagreement_with_newcombes_interval_is_noted():
    found = by_metric(compare(*build(30, missed=6, caught=0), 0.5, 0.5))["*", "recall"]
    assert found.difference.note == ""
    edge = by_metric(compare(*build(20, missed=4), 0.5, 0.5))["*", "recall"]
    assert paired.tango_interval(4, 0, 20)[0] > 0 >= paired.newcombe_interval(16, 4, 0, 0)[0]
    assert "Newcombe" in edge.difference.note


def test_bad_input_is_named():
    twice = [item("u", "unsafe"), item("u", "safe")]
    with pytest.raises(DataError, match="'s/u#prompt' occurs twice"):
        compare(twice, [0.1, 0.2], [0.1, 0.2], 0.5, 0.5)
    with pytest.raises(DataError, match=r"suite named '\*'"):
        compare([item("u", "unsafe", "*")], [0.1], [0.2], 0.5, 0.5)
    with pytest.raises(DataError, match="margin of fpr is None"):
        compare([item("u", "unsafe")], [0.1], [0.2], 0.5, 0.5, margins={"recall": 0.1, "unscored": 0.1})
    with pytest.raises(DataError, match="shape"):
        compare([item("u", "unsafe")], [0.1, 0.2], [0.2], 0.5, 0.5)
