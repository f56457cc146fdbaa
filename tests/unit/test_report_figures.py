from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from guardkeel.records import Estimate
from guardkeel.report import charts, plots
from guardkeel.report.charts import Null, Series
from guardkeel.report.curves import ROC_POINTS, Roc, Scores, Spread
from guardkeel.report.layers import lowlights, panels
from guardkeel.results import LayerGeometry, Measure
from run_directories import HOSTILE


def scored(unsafe: list[float | None], safe: list[float | None], threshold: float = 0.5) -> Scores:
    scores = Scores(threshold)
    for s in unsafe:
        scores.add(s, unsafe=True)
    for s in safe:
        scores.add(s, unsafe=False)
    return scores


def test_spread_counts_by_bin_and_class() -> None:
    spread = scored([0.0, 0.049, 0.05, 1.0, None], [0.5, None, None]).spread()
    assert spread.unsafe[:2] == (2, 1)
    assert (spread.unsafe[19], sum(spread.unsafe)) == (1, 4)
    assert (spread.safe[10], sum(spread.safe)) == (1, 1)
    assert (spread.unscored_unsafe, spread.unscored_safe) == (1, 2)


def test_roc_by_hand() -> None:
    # ranked: unsafe .9, safe .8, tie of one each at .6, unsafe .2
    roc = scored([0.9, 0.6, 0.2], [0.8, 0.6]).roc()
    assert roc is not None
    assert roc.corners == ((0, 0), (0, 1 / 3), (0.5, 1 / 3), (1, 2 / 3), (1, 1))
    assert roc.point == (1.0, 2 / 3)


def test_roc_drops_points_inside_straight_stretches_and_thins_the_rest() -> None:
    apart = scored([0.9, 0.8, 0.7], [0.3, 0.2]).roc()
    assert apart == Roc(((0, 0), (0, 1), (1, 1)), (0.0, 1.0))
    mixed = scored([i / 1000 for i in range(0, 1000, 2)], [i / 1000 for i in range(1, 1000, 2)]).roc()
    assert mixed is not None
    assert len(mixed.corners) <= ROC_POINTS + 2
    assert (mixed.corners[0], mixed.corners[-1]) == ((0, 0), (1, 1))
    assert list(mixed.corners) == sorted(mixed.corners)


def test_roc_needs_both_classes() -> None:
    assert scored([0.5], [None]).roc() is None
    assert scored([], [0.5]).roc() is None


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def marks(svg: str, name: str, class_: str) -> list[dict[str, float]]:
    return [
        {k: float(v) for k, v in e.attrib.items() if re.fullmatch(r"-?[\d.]+", v)}
        for e in parsed(svg).iter(name)
        if e.get("class") == class_
    ]


@pytest.mark.parametrize("hostile", [t for t in HOSTILE if "\ud800" not in t])
def test_text_in_figures_is_escaped(hostile: str) -> None:
    svg = plots.tag("g", plots.tag("title", hostile), hostile, class_=hostile)
    (title,) = parsed(svg)
    assert title.tag == "title"
    assert len(list(title)) == 0
    assert set(parsed(svg).attrib) == {"class"}
    assert ("<" in hostile) == ("&lt;" in svg)


def estimate(value: float | None, low: float | None = None, high: float | None = None) -> Estimate:
    return Estimate(value=value, low=low, high=high, n=100)


def test_whiskers_stand_where_the_numbers_are() -> None:
    svg = plots.whiskers("Recall", estimate(0.5, 0.25, 0.75), estimate(1.0, 0.9, 1.0))
    (reference,) = marks(svg, "line", "whisker ref")
    assert (reference["x1"], reference["x2"], reference["y1"]) == (40.5, 109.5, 9)  # 6 + 138 × share
    assert marks(svg, "circle", "dot ref")[0]["cx"] == 75
    square = marks(svg, "rect", "dot cand")[0]
    assert square["x"] + square["width"] / 2 == pytest.approx(144, abs=0.01)
    assert marks(plots.whiskers("x", estimate(None), None), "circle", "dot ref") == []
    alone = plots.whiskers("x", estimate(0.5), None)
    assert marks(alone, "circle", "dot ref")[0]["cy"] == 15
    assert marks(alone, "line", "whisker ref") == []


def test_harm_is_drawn_in_margins() -> None:
    svg = plots.harm("x", 0.05, 0.0, 0.1, 0.05)  # one margin, from zero to two
    at = 8 + 164 / 6 * 3
    assert marks(svg, "circle", "dot both")[0]["cx"] == pytest.approx(at, abs=0.01)
    assert marks(svg, "line", "margin")[0]["x1"] == pytest.approx(at, abs=0.01)
    assert "beyond" not in svg
    assert plots.harm("x", 0.6, 0.5, 0.7, 0.05).count('class="beyond"') == 1
    assert 'class="dot' not in plots.harm("x", 0.6, 0.5, 0.7, 0.05)
    assert plots.harm("x", 0.0, -0.9, 0.9, 0.05).count('class="beyond"') == 2
    assert marks(plots.harm("x", 0.05, None, None, 0.05), "line", "whisker both")[0]["x1"] == pytest.approx(
        at, abs=0.01
    )


def test_split_bar_divides_by_share() -> None:
    svg = plots.split_bar(0.3, 0.1)
    assert [
        r["width"] for r in (marks(svg, "rect", "lost-ranking")[0], marks(svg, "rect", "lost-operating")[0])
    ] == [75, 25]
    assert "75% of the loss is ranking" in svg


def test_track_leaves_out_the_unscored() -> None:
    svg = plots.track("x", [("ref", 0.5), ("cand", None)], 0.5)
    assert marks(svg, "circle", "dot ref")[0]["cx"] == 58
    assert marks(svg, "rect", "dot cand") == []


def test_histogram_heights_are_shares_of_the_class() -> None:
    counts = [0] * 20
    counts[0], counts[19] = 30, 10
    spread = Spread(tuple(counts), (0,) * 19 + (7,), 0, 0, 0.9)
    svg = charts.histogram("h", "reference", "ref", spread, 1.0)
    up = marks(svg, "rect", "bar-unsafe")
    assert [b["height"] for b in up] == [93.75, 31.25]  # 75% and 25% of 125
    assert up[0]["y"] + up[0]["height"] == marks(svg, "rect", "bar-safe")[0]["y"] == 151
    assert marks(svg, "rect", "bar-safe")[0]["height"] == 125
    threshold = next(e for e in parsed(svg).iter("text") if (e.text or "").startswith("threshold"))
    assert threshold.get("text-anchor") == "end"  # no room to the right of 0.9


def test_roc_figure_says_where_the_guards_stand() -> None:
    svg = charts.roc(
        "r", [("ref", Roc(((0, 0), (0, 1), (1, 1)), (0.1, 0.9))), ("cand", Roc(((0, 0), (1, 1)), (0.5, 0.5)))]
    )
    assert "reference at FPR 0.100, recall 0.900; candidate at FPR 0.500" in svg
    assert marks(svg, "circle", "dot ref")[0] == {"cx": 42 + 26.6, "cy": pytest.approx(12 + 26.6), "r": 6}


def ticks(svg: str) -> list[str]:
    return [e.text or "" for e in parsed(svg).iter("text") if e.get("text-anchor") == "end"]


def line_of(*values: float | None, spread: float = 0.0) -> Series:
    return Series(
        "ref",
        tuple(
            (i, estimate(v, None if v is None else v - spread, None if v is None else v + spread))
            for i, v in enumerate(values, 1)
        ),
    )


def test_axes_have_round_ticks_that_hold_the_values() -> None:
    assert ticks(charts.panel("p", "t", "d", [line_of(0.4, 2.6)], low=0.0)) == ["0", "1", "2", "3"]
    assert ticks(charts.panel("p", "t", "d", [line_of(0.97, 0.99)], low=0.0, high=1.0)) == [
        "0.0",
        "0.2",
        "0.4",
        "0.6",
        "0.8",
        "1.0",
    ]
    assert ticks(charts.panel("p", "t", "d", [line_of(-0.1, 0.9)], low=0.0, high=1.0))[0] == "−0.25"
    assert ticks(charts.panel("p", "t", "d", [line_of(0.02)], low=0.0, high=90.0, step=30.0, unit="°")) == [
        "0°",
        "30°",
        "60°",
        "90°",
    ]
    assert len(ticks(charts.panel("p", "t", "d", [line_of(0.5, 0.5)]))) >= 2
    assert len(ticks(charts.panel("p", "t", "d", [line_of(None)]))) >= 2


def test_chance_below_the_axis_does_not_stretch_it() -> None:
    null = [Null(1, -0.02, 0.05), Null(2, -0.01, 0.04)]
    assert ticks(charts.panel("p", "t", "d", [line_of(0.4, 1.9)], null, low=0.0))[0] == "0.0"


def test_many_layers_get_a_band_and_few_dots() -> None:
    few = charts.panel("p", "t", "d", [line_of(*[0.5] * 16, spread=0.1)], low=0.0, high=1.0)
    many = charts.panel("p", "t", "d", [line_of(*[0.5] * 17, spread=0.1)], low=0.0, high=1.0)
    assert (few.count('class="whisker'), few.count('class="dot'), few.count("<polygon")) == (16, 16, 0)
    assert (many.count('class="whisker'), many.count('class="dot'), many.count("<polygon")) == (0, 6, 1)


def test_chance_is_a_band_and_a_single_layer_still_shows_it() -> None:
    null = [Null(1, 0.5, 0.6), Null(2, 0.5, 0.6)]
    svg = charts.panel("p", "t", "d", [line_of(0.9, 0.8)], null, low=0.5, high=1.0)
    assert 'class="null-band"' in svg
    one = parsed(charts.panel("p", "t", "d", [line_of(0.9)], null[:1], low=0.5, high=1.0))
    (band,) = (e for e in one.iter("polygon"))
    xs = [float(p.split(",")[0]) for p in (band.get("points") or "").split()]
    assert max(xs) - min(xs) == 24
    assert "null-band" not in charts.panel(
        "p", "t", "d", [line_of(0.9)], [Null(1, 0.5, None)], low=0.5, high=1.0
    )


def measure(value: float | None, null: float | None = None) -> Measure:
    return Measure(
        estimate=estimate(value, value, value),
        null_mean=null,
        null_high=null,
        p=None if null is None else 0.01,
    )


def layer(number: int, **fields: object) -> LayerGeometry:
    return LayerGeometry.model_validate(
        {
            "layer": number,
            "n": 50,
            "rank": 4,
            "separability_reference": measure(2.0, 0.1),
            "probe_reference": measure(0.9, 0.5),
        }
        | fields
    )


def test_panels_of_one_guard_and_of_two() -> None:
    assert panels([]) == []
    assert [p.title for p in panels([layer(1)])] == ["Separability", "Probe AUROC"]
    full = layer(
        1,
        separability_candidate=measure(1.0),
        probe_candidate=measure(0.7),
        cka=measure(0.6, 0.0),
        overlap=measure(0.5),
        principal_angles=[10.0, 20.0, 60.0, 30.0],
        drift=estimate(0.3),
        drift_inside=measure(0.4, 0.1),
    )
    found = {p.title: p for p in panels([full, layer(2, cka=measure(None))])}
    assert list(found) == [
        "Similarity (CKA)",
        "Separability",
        "Probe AUROC",
        "Subspace overlap",
        "Principal angles",
        "Drift",
        "Drift inside the subspace",
    ]
    assert found["Principal angles"].rows == (("1", "10.0°", "25.0°", "60.0°", "4"),)
    assert found["Similarity (CKA)"].columns == ("Layer", "CKA", "Chance (95% below)")
    assert found["Similarity (CKA)"].rows[0] == ("1", "0.600 [0.600, 0.600]", "0.000 (0.000), p 0.010")
    assert found["Similarity (CKA)"].rows[1] == ("2", "–", "–")
    assert found["Separability"].rows[1] == ("2", "2.000 [2.000, 2.000]", "0.100 (0.100), p 0.010", "–")
    assert found["Drift"].rows == (("1", "0.300"), ("2", "–"))
    assert (
        "reference: 2.000 at layer 1, 2.000 at layer 2; candidate: 1.000 at layer 1"
        in found["Separability"].figure
    )


def test_a_measure_without_value_gives_its_reason() -> None:
    nothing = Measure(estimate=Estimate(value=None, n=3, note="too few items"))
    (separability, _) = panels([layer(1, separability_reference=nothing)])
    assert separability.rows == (("1", "– (too few items)"),)


def test_lowlights_name_the_worst_layers() -> None:
    layers = [
        layer(
            3,
            separability_candidate=measure(1.5),
            probe_candidate=measure(0.95),
            cka=measure(0.9),
            drift_inside=measure(0.4, 0.1),
        ),
        layer(
            7,
            separability_candidate=measure(0.5),
            probe_candidate=measure(0.99),
            cka=measure(0.4),
            drift_inside=measure(0.05, 0.1),
        ),
    ]
    assert lowlights(layers) == [
        "Activations changed most at layer 7: CKA 0.400.",
        "Separability fell most at layer 7: 2.000 → 0.500.",
        "A probe’s AUROC fell nowhere and rose least at layer 3: 0.900 → 0.950.",
        "Drift leans to the safety subspace more than chance at 1 of 2 layers.",
    ]
    assert lowlights(layers[:1])[:2] == [
        "Likeness of activations at layer 3: CKA 0.900.",
        "Separability moved at layer 3: 2.000 → 1.500.",
    ]
    assert lowlights([layer(1)]) == []
