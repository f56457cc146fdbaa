"""Figures of a sweep: what each point keeps of the task against what it keeps of the guard, and one point by layer.

Pure functions of numbers. The reference is a blue circle and candidates are squares, as elsewhere; fused points are
dark circles, full where no other point beats them; plain interpolation is a chain of diamonds, random masks crosses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from guardkeel.fusion.results import Measured
from guardkeel.fusion.sweep.front import front
from guardkeel.fusion.sweep.results import Point, SweepResults
from guardkeel.report import words
from guardkeel.report.plots import dot, figure, label, line, path, tag

_LEFT, _RIGHT, _TOP = 48, 548, 12
_WIDTH = 560

Value = Callable[[Point], float | None]


def trade(key: str, results: SweepResults, numbers: Mapping[str, int], *, of: str) -> Markup | None:
    """Task gain kept (across) against recall at the reference's FPR, or FPR as shipped (up); None without points.

    Values beyond the axes sit on their edge. In the figure of recall the line joins the points that are not beaten in
    these two; those that are not beaten in all three are full and numbered.
    """
    recall = of == "recall"
    value: Value = (lambda p: p.recall_matched.value) if recall else (lambda p: p.fpr.value)
    known = [
        (p, p.gain.value, v)
        for p in results.points
        if p.gain.value is not None and (v := value(p)) is not None
    ]
    if not known:
        return None
    height, bottom = 400, 354
    across = _axis([g for _, g, _ in known], (0.0, 1.0), (-0.5, 1.5))
    up = _axis([v for *_, v in known], (1.0, 1.0) if recall else (0.0, 0.05), (0.0, 1.0))

    def at(gain: float, level: float) -> tuple[float, float]:
        x, y = (
            (min(max(v, low), high) - low) / (high - low) for v, (low, high) in ((gain, across), (level, up))
        )
        return round(_LEFT + (_RIGHT - _LEFT) * x, 1), round(bottom - (bottom - _TOP) * y, 1)

    marks = [tag("rect", x=_LEFT, y=_TOP, width=_RIGHT - _LEFT, height=bottom - _TOP, class_="frame")]
    for v in _ticks(across):
        x, _ = at(v, up[0])
        marks += [line(x, _TOP, x, bottom, "grid"), label(f"{100 * v:.4g}%", x, bottom + 17)]
    for v in _ticks(up):
        _, y = at(across[0], v)
        marks += [line(_LEFT, y, _RIGHT, y, "grid"), label(f"{100 * v:.4g}%", _LEFT - 6, y + 4, "end")]
    marks += _limits(results, at, up, bottom, recall)
    if recall:
        kept = [k for k, f in zip(known, front([(g, v) for _, g, v in known]), strict=True) if f]
        stairs = [at(g, v) for _, g, v in sorted(kept, key=lambda k: (k[1], -k[2]))]
        marks.append(tag("polyline", points=path(stairs), class_="line front"))
    chain = [at(g, v) for p, g, v in known if p.control == "interpolation"]
    marks.append(tag("polyline", points=path(chain), class_="line thin chain"))
    marks += _points([(p, *at(g, v)) for p, g, v in known], numbers, results.choice.chosen)
    said = "recall at the reference’s FPR" if recall else "FPR as shipped"
    middle = (_TOP + bottom) / 2
    marks += [
        label("task gain kept", (_LEFT + _RIGHT) / 2, height - 6),
        tag("text", said, transform=f"translate(11 {middle:g}) rotate(-90)", text_anchor="middle"),
    ]
    title = f"Task gain kept against {said}"
    told = "; ".join(f"{numbers[p.id]} {p.name}: gain {g:.0%}, {words.percent(v)}" for p, g, v in known)
    return figure(key, title, f"{title}. {told}.", *marks, size=(_WIDTH, height))


def _limits(
    results: SweepResults,
    at: Callable[[float, float], tuple[float, float]],
    up: tuple[float, float],
    bottom: float,
    recall: bool,
) -> list[Markup]:
    """What the rule asks for, dashed: the floor of the gain, and the most FPR; and the reference's recall, a line."""
    x, _ = at(results.floor, up[0])
    marks = [line(x, _TOP, x, bottom, "margin faint")]
    reference = next(p for p in results.points if p.control == "reference")
    level = reference.recall_matched.value if recall else reference.fpr.value
    if level is not None:
        _, y = at(0.0, level if recall else level + results.fpr_margin)
        marks.append(line(_LEFT, y, _RIGHT, y, "axis" if recall else "margin faint"))
    return marks


def _points(
    points: Sequence[tuple[Point, float, float]], numbers: Mapping[str, int], chosen: str | None
) -> list[Markup]:
    """Marks, those on the front last and on top, and their numbers where there is room for them."""
    marks, texts = [], []
    taken = [(x, y) for p, x, y in points if p.front or p.control in ("reference", "candidate")]
    for p, x, y in sorted(points, key=lambda q: (q[0].control == "reference", q[0].front, q[0].id == chosen)):
        marks.append(_mark(p, x, y))
        if p.id == chosen:
            marks.append(tag("circle", cx=x, cy=y, r=9, class_="ring"))
        if p.front or p.control in ("reference", "candidate"):
            tx, ty = _free(x, y, taken, 20 if p.id == chosen else 14)
            taken.append((tx, ty))
            texts.append(tag("text", str(numbers[p.id]), x=round(tx, 1), y=round(ty + 4, 1), class_="at"))
    return [*marks, *texts]


def _mark(p: Point, x: float, y: float) -> Markup:
    name = tag("title", p.name)
    if p.control in ("reference", "candidate"):
        return tag("g", name, dot("cand" if p.control == "candidate" else "ref", x, y, 5.5))
    state = "full" if p.front else "open"
    if p.control == "interpolation":
        return tag("g", name, tag("path", d=f"M{x:g} {y - 5:g}l5 5l-5 5l-5 -5z", class_=f"point {state}"))
    if p.control == "random mask":
        return tag(
            "g", name, tag("path", d=f"M{x - 3.5:g} {y - 3.5:g}l7 7m0 -7l-7 7", class_=f"cross {state}")
        )
    return tag("g", name, tag("circle", cx=x, cy=y, r=4.5 if p.front else 3.5, class_=f"point {state}"))


def _free(x: float, y: float, taken: Sequence[tuple[float, float]], nearest: float) -> tuple[float, float]:
    """A place for a number beside a mark, on no other mark or number of the front where there is one."""
    for distance in (nearest, nearest + 7, nearest + 15, nearest + 24):
        for turn in (-60, -120, 60, 120, 0, 180, -90, 90):
            tx = x + distance * math.cos(math.radians(turn))
            ty = y + distance * math.sin(math.radians(turn))
            if _LEFT + 8 < tx < _RIGHT - 4 and all(abs(tx - a) > 15 or abs(ty - b) > 11 for a, b in taken):
                return tx, ty
    return x + nearest, y


def _axis(
    values: Sequence[float], ends: tuple[float, float], most: tuple[float, float]
) -> tuple[float, float]:
    """The range of an axis in tenths that holds the values and `ends`, no wider than `most`."""
    low, high = min(*values, *ends), max(*values, *ends)
    low, high = max(most[0], math.floor(10 * low + 1e-9) / 10), min(most[1], math.ceil(10 * high - 1e-9) / 10)
    return (low, high) if high - low > 0.15 else (max(most[0], high - 0.2), max(high, low + 0.2))


def _ticks(axis: tuple[float, float]) -> list[float]:
    low, high = axis
    step = 0.1 if high - low < 0.75 else 0.2 if high - low < 1.3 else 0.5
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 4) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def layers(key: str, rows: Sequence[Measured], names: Sequence[str]) -> Markup | None:
    """Share of each candidate's change that is left (solid) and its cosine (dashed), layer by layer; None without."""
    shown = [r for r in rows if any(s is not None for s in r.shares)]
    if len(shown) < 2:
        return None
    height, bottom = 240, 194
    highest = max((s for r in shown for s in r.shares if s is not None), default=1.0)
    low = -1.0 if any(c is not None and c < -0.05 for r in shown for c in r.cosines) else 0.0
    high = max(1.0, min(2.0, math.ceil(10 * highest) / 10))

    def at(k: int, value: float) -> tuple[float, float]:
        x = _LEFT + 12 + (_RIGHT - _LEFT - 40) * k / (len(shown) - 1)
        return round(x, 1), round(
            bottom - (bottom - _TOP) * (min(max(value, low), high) - low) / (high - low), 1
        )

    marks = []
    for v in [low + (high - low) * k / 4 for k in range(5)]:
        _, y = at(0, v)
        marks += [line(_LEFT, y, _RIGHT, y, "grid"), label(f"{v:.2g}", _LEFT - 6, y + 4, "end")]
    every = math.ceil(len(shown) / 16)
    for k, r in enumerate(shown):
        if k % every == 0 or (k == len(shown) - 1 and k % every > every / 2):
            marks.append(label(_short(r.name), at(k, low)[0], bottom + 16))
    for c in range(len(names)):
        for values, kind in (
            ([r.shares[c] for r in shown], "solid"),
            ([r.cosines[c] for r in shown], "dashed"),
        ):
            corners = [at(k, v) for k, v in enumerate(values) if v is not None]
            if not corners:
                continue
            marks.append(tag("polyline", points=path(corners), class_=f"line thin layer {kind}"))
            marks += [tag("circle", cx=x, cy=y, r=2.2, class_="point full") for x, y in corners]
            if len(names) > 1 and kind == "solid":
                x, y = corners[-1]
                marks.append(label(f"{c + 1}", x + 10, y + 4, "start", "strong"))
    marks.append(label("layer", (_LEFT + _RIGHT) / 2, height - 6))
    said = "; ".join(
        f"{name}: " + ", ".join(f"{_short(r.name)} {words.decimal(r.shares[c], 2)}" for r in shown)
        for c, name in enumerate(names)
    )
    title = "Share of the change that is left, by layer"
    return figure(key, title, f"{title}. {said}.", *marks, size=(_WIDTH, height))


def _short(name: str) -> str:
    """model.layers.7 → 7."""
    last = name.rsplit(".", 1)[-1]
    return last if last.isdigit() else name[:8]
