"""Figures of a study of heads: the layer × head map, values in order, and effect against group size.

Pure functions of numbers. Colour says how much (blue up, purple down where a measure has a direction), the ring which
heads were found together; found groups are circles and a solid line, random ones a band, those of the same layers a
dotted band between dashes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from guardkeel.heads.results import Effect, Metric
from guardkeel.report import words
from guardkeel.report.plots import dot, figure, label, line, path, tag

_TITLED = 1600
"""Cells that have a title of their own; a page with more would be heavy."""
_NARROWEST = 520.0
POWER = 0.5
"""Depth of a cell's colour is (|value| / largest) to this power: values span orders of magnitude."""

Values = np.ndarray[Any, Any]

STYLE = """
:root { color-scheme: light dark; --ref: #0072b2; --cand: #b0478a; --ink: #191d22; --soft: #565e69; }
:root { --card: #fff; --axis: #8b929b; }
@media (prefers-color-scheme: dark) {
  :root { --ref: #56b4e9; --cand: #e39ac6; --ink: #e8eaed; --soft: #a3abb6; }
  :root { --card: #1a1e24; --axis: #6c7480; }
}
svg { background: var(--card); font-family: system-ui, sans-serif; font-size: 12px; }
text { fill: var(--soft); }
"""


def heatmap(
    key: str,
    title: str,
    values: Values,
    unit: str,
    *,
    group: Sequence[tuple[int, int]] = (),
    largest: float | None = None,
) -> Markup:
    """Layers across, heads down; a cell that was not swept is hatched, found heads are ringed and numbered.

    Args:
        key: unique on the page.
        title: of the figure.
        values: (layers, heads), NaN where not swept.
        unit: of the values.
        group: (layer, head) in their order.
        largest: the value of the deepest colour; by default the largest here.
    """
    layers, heads = values.shape
    side = max(7.0, min(22.0, 620 / layers))
    tall = max(7.0, min(side, 420 / heads))
    left, top = 34.0, 8.0
    width, height = max(_NARROWEST, left + layers * side + 10), top + heads * tall + 44
    known = np.abs(values[np.isfinite(values)])
    most = largest if largest is not None else float(known.max()) if known.size else 0.0
    cells = [
        _cell(values[i, j], left + i * side, top + j * tall, side, tall, most, f"{i}-{j}", values.size)
        for i in range(layers)
        for j in range(heads)
    ]
    rings = []
    for number, (i, j) in enumerate(group, 1):
        x, y = left + i * side, top + j * tall
        rings.append(tag("rect", x=x - 1, y=y - 1, width=side + 1, height=tall + 1, class_="cell-ring"))
        if tall >= 9:
            rings.append(tag("text", str(number), x=x + side / 2, y=y + tall / 2 + 4, class_="at"))
    marks = [
        *(
            label(str(i), left + (i + 0.5) * side, top + heads * tall + 14)
            for i in range(0, layers, math.ceil(layers / 16))
        ),
        *(
            label(str(j), left - 6, top + (j + 0.5) * tall + 4, "end")
            for j in range(0, heads, math.ceil(heads * 13 / (heads * tall)))
        ),
        label("layer", left + layers * side / 2, height - 8),
        tag(
            "text",
            "head",
            transform=f"translate(10 {top + heads * tall / 2:g}) rotate(-90)",
            text_anchor="middle",
        ),
    ]
    best = sorted(
        ((float(values[h]), h) for h in np.ndindex(*values.shape) if np.isfinite(values[h])), reverse=True
    )
    said = ", ".join(f"{i}-{j} {v:.3g}" for v, (i, j) in best[:10])
    described = f"{title}, in {unit}. The highest: {said}." if said else f"{title}: nothing was swept."
    return figure(
        key, title, described, *cells, *marks, *rings, size=(round(width, 1), round(height, 1)), class_="heat"
    )


def _cell(
    value: float, x: float, y: float, side: float, tall: float, most: float, name: str, count: int
) -> Markup:
    box = {"x": x, "y": y, "width": side - 1, "height": tall - 1}
    if not math.isfinite(value):
        return tag("rect", class_="cell-not", **box)
    depth = (abs(value) / most) ** POWER if most > 0 else 0.0
    title = [tag("title", f"{name}: {value:.4g}")] if count <= _TITLED else []
    kind = "cell neg" if value < 0 else "cell"
    return tag("rect", *title, class_=kind, fill_opacity=round(0.05 + 0.95 * min(depth, 1.0), 2), **box)


def standalone(svg: Markup) -> str:
    """A figure as a file of its own, light or dark as its reader is."""
    from guardkeel.report.render import asset

    style = tag("style", Markup(STYLE + asset("heads.css")))  # noqa: S704 - our own files
    text = str(svg).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    head, end, rest = text.partition(">")
    return f"{head}{end}{style}{rest}\n"


def distribution(key: str, unit: str, series: Mapping[str, Values]) -> Markup | None:
    """Values of all heads from highest to lowest, on a logarithmic axis; `series` by set: unsafe and benign."""
    sorted_by = {
        name: np.sort(np.abs(v[np.isfinite(v)]))[::-1] for name, v in series.items() if np.isfinite(v).any()
    }
    positive = [v for s in sorted_by.values() for v in s.tolist() if v > 0]
    if not positive:
        return None
    width, height, left, right, top, bottom = 560, 260, 62, 546, 10, 214
    high = math.ceil(math.log10(max(positive)))
    low = max(math.floor(math.log10(min(positive))), high - 6)
    low = low - 1 if low == high else low
    longest = max(len(s) for s in sorted_by.values())

    def at(rank: int, value: float) -> tuple[float, float]:
        x = left + (right - left) * rank / max(1, longest - 1)
        y = (math.log10(value) - low) / (high - low) if value > 0 else 0.0
        return round(x, 1), round(bottom - (bottom - top) * min(max(y, 0.0), 1.0), 1)

    marks = []
    for power in range(low, high + 1):
        _, y = at(0, 10.0**power)
        marks += [line(left, y, right, y, "grid"), label(f"{10.0**power:g}", left - 6, y + 4, "end")]
    for name, values in sorted_by.items():
        role = "ref" if name == "unsafe" else "cand"
        marks.append(
            tag("polyline", points=path([at(i, v) for i, v in enumerate(values)]), class_=f"line {role}")
        )
        for rank in range(min(5, len(values))):
            marks.append(dot(role, *at(rank, values[rank]), 3))
    for rank in sorted({0, longest // 4, longest // 2, 3 * longest // 4, longest - 1}):
        marks.append(label(str(rank + 1), at(rank, 10.0**low)[0], bottom + 16))
    marks += [
        label("rank of the head", (left + right) / 2, height - 6),
        tag(
            "text", unit, transform=f"translate(12 {(top + bottom) / 2:g}) rotate(-90)", text_anchor="middle"
        ),
    ]
    said = "; ".join(f"{n}: highest {s[0]:.3g}, median {np.median(s):.3g}" for n, s in sorted_by.items())
    return figure(
        key, "Values in order", f"Heads by {unit}, highest first. {said}.", *marks, size=(width, height)
    )


def sizes(key: str, found: Effect, metric: Metric, title: str) -> Markup | None:
    """Change of a rate, in points, against the number of heads ablated; with controls."""
    mine = [(t.size, getattr(t, metric)) for t in found.trials if t.kind == "found"]
    mine = [(s, c.difference) for s, c in mine if c.difference.value is not None]
    if not mine:
        return None
    bands = {
        kind: [(b.size, b.low, b.mean, b.high) for b in found.beside if b.kind == kind and b.metric == metric]
        for kind in ("random", "matched")
    }
    ends = [v for _, d in mine for v in (d.value, d.low, d.high) if v is not None]
    ends += [v for rows in bands.values() for _, *row in rows for v in row]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    pad = max(0.02, 0.06 * (high - low))
    low, high = max(-1.0, low - pad), min(1.0, high + pad)
    width, height, left, right, top, bottom = 360, 250, 48, 348, 10, 204
    most = max(s for s, _ in mine)

    def at(size: float, value: float) -> tuple[float, float]:
        x = left + 18 + (right - left - 36) * (size - 1) / max(1, most - 1)
        return round(x, 1), round(bottom - (bottom - top) * (value - low) / (high - low), 1)

    marks = [tag("rect", x=left, y=top, width=right - left, height=bottom - top, class_="frame")]
    step = _step(high - low)
    for k in range(math.ceil(low / step), math.floor(high / step) + 1):
        _, y = at(1, k * step)
        marks += [
            line(left, y, right, y, "axis" if k == 0 else "grid"),
            label(words.points(k * step).removesuffix(".0"), left - 6, y + 4, "end"),
        ]
    for kind, rows in bands.items():
        marks += _band(kind, rows, at)
    marks.append(tag("polyline", points=path([at(s, d.value or 0.0) for s, d in mine]), class_="line ref"))
    for s, d in mine:
        x, y = at(s, d.value or 0.0)
        if d.low is not None and d.high is not None:
            marks.append(line(x, at(s, d.low)[1], x, at(s, d.high)[1], "whisker thin ref"))
        marks += [dot("ref", x, y), label(str(s), x, bottom + 16)]
    marks.append(label("heads ablated", (left + right) / 2, height - 8))
    said = "; ".join(f"{s}: {words.points(d.value)}" for s, d in mine)
    return figure(key, title, f"{title}, in points. Found heads: {said}.", *marks, size=(width, height))


def _band(kind: str, rows: Sequence[tuple[int, float, float, float]], at: Any) -> list[Markup]:
    """Lowest to highest of the draws, and their mean."""
    if not rows:
        return []
    if len(rows) == 1:
        size, low, mean, high = rows[0]
        rows = [(size - 0.12, low, mean, high), (size + 0.12, low, mean, high)]  # type: ignore[list-item]
    edge = [at(s, low) for s, low, _, _ in rows] + [at(s, high) for s, _, _, high in reversed(rows)]
    means = [at(s, mean) for s, _, mean, _ in rows]
    return [
        tag("polygon", points=path(edge), class_=f"control {kind}"),
        tag("polyline", points=path(means), class_=f"line thin mean {kind}"),
    ]


def _step(span: float) -> float:
    for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5):
        if span / step <= 6:
            return step
    return 0.5
