"""The larger figures of a report, as inline SVG: score histograms, ROC curves, and a measure by layer.

Pure functions of numbers. Every figure has a title and a description; its numbers stand in a table beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from guardkeel.records import Estimate
from guardkeel.report.curves import BINS, Roc, Spread
from guardkeel.report.plots import Point, dot, figure, label, line, path, tag
from guardkeel.report.words import decimal

CROWDED = 16  # layers above which intervals are drawn as a band
At = Callable[[float, float], Point]


@dataclass(frozen=True, slots=True)
class Series:
    """One guard's line in a panel: (layer, estimate) pairs; estimates without a value are left out."""

    role: str
    points: tuple[tuple[int, Estimate], ...]


@dataclass(frozen=True, slots=True)
class Null:
    """What chance gives at a layer: its mean, and its 95th percentile where known."""

    layer: int
    mean: float | None
    high: float | None


def histogram(key: str, name: str, role: str, spread: Spread, top: float) -> Markup:
    """Scores of one guard, unsafe items upwards and safe ones downwards, as shares of their class.

    `top` is the largest share of any bin of any figure that stands beside this one: they share one scale.
    """
    width, left, right, upper, lower = 340, 40, 8, 26, 276
    middle, half, inner = (upper + lower) / 2, (lower - upper) / 2, width - left - right
    top = math.ceil(10 * top) / 10

    def x(score: float) -> float:
        return left + inner * min(max(score, 0.0), 1.0)

    marks = [
        line(left, middle + half * s, width - right, middle + half * s, "grid") for s in (-1, -0.5, 0.5, 1)
    ]
    for counts, side, sign in ((spread.unsafe, "unsafe", -1), (spread.safe, "safe", 1)):
        total = sum(counts)
        for i, c in enumerate(counts):
            if not c:
                continue
            tall = max(1.0, half * c / total / top)
            said = tag("title", f"{side}, {i / BINS:.2f} to {(i + 1) / BINS:.2f}: {c:,} of {total:,}")
            box = {"x": x(i / BINS) + 0.6, "y": middle - tall if sign < 0 else middle}
            marks.append(
                tag("rect", said, **box, width=inner / BINS - 1.2, height=tall, class_=f"bar-{side}")
            )
    t, toward = x(spread.threshold), "start" if spread.threshold < 0.72 else "end"
    marks += [
        line(left, middle, width - right, middle, "axis"),
        line(t, upper - 8, t, lower + 4, "threshold"),
        label(
            f"threshold {spread.threshold:g}",
            t + (5 if toward == "start" else -5),
            upper - 8,
            toward,
            "strong",
        ),
        label("unsafe ↑", left + 6, upper + 14, "start", "strong"),
        label("safe ↓", width - right - 6, lower - 8, "end", "strong"),
        *(label(f"{top * abs(s):.0%}", left - 5, middle + half * s + 4, "end") for s in (-1, -0.5, 0.5, 1)),
        *(label(f"{s:g}", x(s), lower + 18) for s in (0, 0.25, 0.5, 0.75, 1)),
        label("P(unsafe)", x(0.5), lower + 36),
    ]
    said_all = (
        f"Histogram of P(unsafe) in {BINS} bins, unsafe items above the line and safe items below. "
        f"Items right of the threshold {spread.threshold:g} are flagged."
    )
    return figure(key, f"Scores of the {name}", said_all, *marks, size=(width, lower + 42), class_=role)


def roc(key: str, curves: Sequence[tuple[str, Roc]]) -> Markup:
    """ROC curves, recall against FPR, with the operating points."""
    left, top, inner = 42, 12, 266

    def at(x: float, y: float) -> Point:
        return left + inner * x, top + inner * (1 - y)

    marks = [line(*at(s, 0), *at(s, 1), "grid") for s in (0.25, 0.5, 0.75)]
    marks += [line(*at(0, s), *at(1, s), "grid") for s in (0.25, 0.5, 0.75)]
    marks += [
        tag("rect", x=left, y=top, width=inner, height=inner, class_="frame"),
        line(*at(0, 0), *at(1, 1), "chance"),
        *(
            tag("polyline", points=path(at(*c) for c in r.corners), class_=f"line {role}")
            for role, r in curves
        ),
        *(dot(role, *at(*r.point), 6) for role, r in curves),
        *(label(f"{s:.0%}", at(s, 0)[0], top + inner + 16) for s in (0, 0.5, 1)),
        *(label(f"{s:.0%}", left - 5, at(0, s)[1] + 4, "end") for s in (0, 1)),
        label("false-positive rate", left + inner / 2, top + inner + 34),
        tag(
            "text",
            "recall",
            transform=f"translate({left - 12} {top + inner / 2:g}) rotate(-90)",
            text_anchor="middle",
        ),
    ]
    said = "; ".join(
        f"{'candidate' if role == 'cand' else 'reference'} at FPR {r.point[0]:.3f}, recall {r.point[1]:.3f}"
        for role, r in curves
    )
    description = (
        f"Recall against false-positive rate as the threshold moves; the dotted diagonal is chance; {said}."
    )
    return figure(key, "ROC curves", description, *marks, size=(left + inner + 12, top + inner + 40))


def panel(
    key: str,
    title: str,
    description: str,
    series: Sequence[Series],
    null: Sequence[Null] = (),
    *,
    low: float | None = None,
    high: float | None = None,
    step: float | None = None,
    unit: str = "",
) -> Markup:
    """One measure by layer: a line with intervals for each guard, over the band that chance gives.

    The axis holds all values and `low` to `high`; where `high` is given, intervals beyond it are cut. `step`
    is the distance of its ticks.
    """
    width, height, left, right, top, bottom = 330, 196, 40, 8, 12, 36
    layers = sorted({layer for s in series for layer, _ in s.points} | {n.layer for n in null})
    ticks = _ticks(series, null, low, high, step)
    floor, ceiling = ticks[0], ticks[-1]
    first, last = (layers[0], layers[-1]) if layers else (0, 1)

    def at(layer: float, value: float) -> Point:
        across = (layer - first) / (last - first) if last > first else 0.5
        up = (min(max(value, floor), ceiling) - floor) / (ceiling - floor)
        return left + 10 + (width - left - right - 20) * across, height - bottom - (
            height - top - bottom
        ) * up

    digits = _digits(ticks[1] - ticks[0])
    marks = []
    for t in ticks:
        y = at(first, t)[1]
        marks += [
            line(left, y, width - right, y, "grid"),
            label(f"{decimal(t, digits)}{unit}", left - 5, y + 4, "end"),
        ]
    marks += [label(f"{layer}", at(layer, floor)[0], height - bottom + 16) for layer in _labelled(layers)]
    marks += _null_marks(null, at, floor)
    for s in series:
        marks += _series_marks(s, at)
    marks.append(line(left, height - bottom, width - right, height - bottom, "axis"))
    marks.append(label("layer", (left + width - right) / 2, height - 4))
    return figure(key, title, description, *marks, size=(width, height))


def _null_marks(null: Sequence[Null], at: At, floor: float) -> list[Markup]:
    """A dotted band up to the 95th percentile of chance and a dashed line at its mean."""
    upper = [at(n.layer, n.high) for n in null if n.high is not None]
    means = [at(n.layer, n.mean) for n in null if n.mean is not None]
    if len(null) == 1:  # a single layer has no width of its own
        upper = [(x + side, y) for x, y in upper for side in (-12, 12)]
        means = [(x + side, y) for x, y in means for side in (-12, 12)]
    marks = []
    if upper:
        base = at(null[0].layer, floor)[1]
        corners = [*upper, (upper[-1][0], base), (upper[0][0], base)]
        marks.append(tag("polygon", points=path(corners), class_="null-band"))
        marks.append(tag("polyline", points=path(upper), class_="null-edge"))
    if means:
        marks.append(tag("polyline", points=path(means), class_="null-line"))
    return marks


def _series_marks(series: Series, at: At) -> list[Markup]:
    """A line with whiskers, or with a band and few dots where layers are many."""
    points = [(layer, e, e.value) for layer, e in series.points if e.value is not None]
    crowded = len(points) > CROWDED
    dotted = _labelled([layer for layer, _, _ in points]) if crowded else [layer for layer, _, _ in points]
    ends = [(layer, e.low, e.high) for layer, e, _ in points if e.low is not None and e.high is not None]
    marks = []
    if crowded and ends:
        corners = [*(at(p, high) for p, _, high in ends), *(at(p, low) for p, low, _ in reversed(ends))]
        marks.append(tag("polygon", points=path(corners), class_=f"band {series.role}"))
    nudge = {"ref": -1.5, "cand": 1.5}.get(series.role, 0.0)  # so that neither interval hides the other
    if not crowded:
        for layer, low, high in ends:
            (x, y1), (_, y2) = at(layer, low), at(layer, high)
            marks.append(line(x + nudge, y1, x + nudge, y2, f"whisker thin {series.role}"))
    if len(points) > 1:
        marks.append(
            tag("polyline", points=path(at(p, v) for p, _, v in points), class_=f"line {series.role}")
        )
    marks += [dot(series.role, *at(layer, value), 3.2) for layer, _, value in points if layer in dotted]
    return marks


def _ticks(
    series: Sequence[Series], null: Sequence[Null], low: float | None, high: float | None, step: float | None
) -> list[float]:
    """Round numbers, at least two, that hold all values and the wished ends; chance may lie below them."""
    values = [e.value for s in series for _, e in s.points if e.value is not None]
    chance = [v for n in null for v in (n.mean, n.high) if v is not None]
    values += [v for v in chance if low is None or v > low]
    if high is None:  # an open end makes room for the intervals
        values += [e.high for s in series for _, e in s.points if e.high is not None]
    floor = min([*values, *([] if low is None else [low])], default=0.0)
    ceiling = max([*values, *([] if high is None else [high])], default=1.0)
    if step is None:
        reach = max(ceiling - floor, 1e-6)
        size = 10 ** math.floor(math.log10(reach / 4))
        step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size * 5 >= reach * (1 - 1e-9))
    start = math.floor(floor / step + 1e-9)
    end = math.ceil(ceiling / step - 1e-9)
    return [i * step for i in range(start, max(end, start + 1) + 1)]


def _digits(step: float) -> int:
    """Decimals that tell ticks apart."""
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return digits if abs(step * 10**digits - round(step * 10**digits)) < 1e-6 else digits + 1


def _labelled(layers: list[int]) -> list[int]:
    """At most eight layers whose number is written, the last among them."""
    step = max(1, -(-len(layers) // 8))
    return layers[::-1][::step][::-1]
