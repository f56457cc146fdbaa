"""The figure of regret.py: cumulative losses of experts and ensembles, and losses over the best of each half."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from guardkeel.report.plots import Point, label, line, path, tag

Array = npt.NDArray[np.float64]
WIDE, HIGH, LEFT, TOP, GAP = 470, 330, 56, 46, 70
STYLE = """
svg { background: #fff; font: 12px system-ui, sans-serif } text { fill: #333 } .title { font-weight: 600 }
.axis { stroke: #777 } .grid { stroke: #e4e4e4 } .flip { stroke: #333; stroke-dasharray: 3 3 }
polyline { fill: none; stroke-width: 1.8 } .expert { stroke: #bbb; stroke-width: 1 }
.best { stroke: #333; stroke-width: 1.2 } .e0 { stroke: #0b62a4 } .e1 { stroke: #c2410c; stroke-dasharray: 7 3 }
.e2 { stroke: #15803d } .e3 { stroke: #7e22ce; stroke-dasharray: 2 2 }
"""


def figure(experts: Sequence[str], losses: Array, ensembles: Mapping[str, Array]) -> str:
    """Losses of experts (T, n) and of ensembles (T,), as a standalone SVG."""
    rounds = len(losses)
    half = rounds // 2
    totals = losses.cumsum(axis=0)
    best = int(totals[-1].argmin())
    halves = [int(part.sum(axis=0).argmin()) for part in (losses[:half], losses[half:])]
    target = np.concatenate((losses[:half, halves[0]], losses[half:, halves[1]])).cumsum()
    own = {name: found.cumsum() for name, found in ensembles.items()}
    above = [(f"e{k}", own[name] - target) for k, name in enumerate(own)]
    left = [("expert", totals[:, i]) for i in range(len(experts))]
    left += [("best", totals[:, best]), *((f"e{k}", found) for k, found in enumerate(own.values()))]
    right = [("best", totals[:, i] - target) for i in dict.fromkeys((best, *halves))] + above
    ceiling = float(max(found.max() for _, found in above)) * 2.2
    floor = max(-ceiling, min(float(found.min()) for _, found in above))
    width, height = 2 * (WIDE + LEFT) + GAP + 30, TOP + HIGH + 70 + 18 * len(own)
    key_top = TOP + HIGH + 52
    keys = []
    for k, name in enumerate(own):
        y = key_top + 18 * k
        keys.append(tag("polyline", points=path([(LEFT, y - 4), (LEFT + 34, y - 4)]), class_=f"e{k}"))
        keys.append(label(f"{name}: mean loss {own[name][-1] / rounds:.4f}", LEFT + 42, y, "start"))
    x = LEFT + WIDE + GAP + LEFT
    words = (
        ("expert", "every expert"),
        ("best", f"best expert: {experts[best]}, {totals[-1, best] / rounds:.4f}"),
        ("best", f"right: also best of the halves, {experts[halves[0]]} and {experts[halves[1]]}"),
    )
    for k, (kind, text) in enumerate(words):
        y = key_top + 18 * k
        keys.append(tag("polyline", points=path([(x, y - 4), (x + 34, y - 4)]), class_=kind))
        keys.append(label(text, x + 42, y, "start"))
    panels = (
        *panel("Cumulative Brier loss", left, LEFT, half, 0.0, float(totals[-1].max())),
        *panel("Loss over the best expert of each half", right, x, half, floor, ceiling),
    )
    svg = tag(
        "svg",
        tag("title", "Cumulative loss of ensembles and experts, with a policy flip in mid-stream"),
        tag("style", Markup(STYLE)),
        *panels,
        *keys,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
        role="img",
    )
    return str(svg)


def panel(
    title: str, series: Sequence[tuple[str, Array]], left: float, half: int, low: float, high: float
) -> list[Markup]:
    """Curves over the rounds, cut where they leave the panel."""
    rounds = 2 * half
    step = 10 ** np.floor(np.log10((high - low) / 3))
    step *= min((1, 2, 5, 10), key=lambda k: abs((high - low) / (k * step) - 5))

    def at(t: float, value: float) -> Point:
        return left + WIDE * t / rounds, TOP + HIGH * (high - value) / (high - low)

    marks = [label(title, left, TOP - 18, "start", "title")]
    for value in np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step:
        y = at(0, value)[1]
        marks += [line(left, y, left + WIDE, y, "grid"), label(f"{value + 0.0:g}", left - 6, y + 4, "end")]
    middle, bottom = at(half, low)
    marks += [
        line(middle, TOP, middle, bottom, "flip"),
        label("policy flips", middle + 5, TOP + 12, "start"),
        line(left, bottom, left + WIDE, bottom, "axis"),
        *(label(f"{t:,}", at(t, low)[0], bottom + 18) for t in (0, half, rounds)),
        label("items with feedback", left + WIDE / 2, bottom + 34),
    ]
    every = max(1, rounds // 400)
    for kind, found in series:
        inside = np.flatnonzero((found > high) | (found < low))
        stop = int(inside[0]) if inside.size else len(found)
        points = [at(t, float(found[t])) for t in range(0, stop, every)]
        marks.append(tag("polyline", points=path(points), class_=kind))
    return marks
