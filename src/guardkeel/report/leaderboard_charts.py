"""Figures of a leaderboard: dots with intervals column by column, and recall against false positives.

Pure functions of numbers. Guards carry the number that they have in the tables; the one that all are compared with is a
blue circle, the others are dark squares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from guardkeel.records import Estimate
from guardkeel.report import words
from guardkeel.report.plots import dot, figure, label, line, tag

ROW, LEFT = 17, 26


@dataclass(frozen=True, slots=True)
class Mark:
    """One guard in a figure."""

    number: int
    name: str
    reference: bool
    estimate: Estimate

    @property
    def role(self) -> str:
        """Whose colour and shape it has."""
        return "ref" if self.reference else "both"


@dataclass(frozen=True, slots=True)
class Point:
    """One guard's recall and FPR, at its own threshold and (`moved`) at the fixed FPR."""

    number: int
    name: str
    reference: bool
    fpr: Estimate
    recall: Estimate
    moved: tuple[float, float] | None = None


def dots(key: str, title: str, marks: Sequence[Mark], width: int = 320) -> Markup | None:
    """A line for each guard that has a value: its number, a dot and its interval."""
    known = [m for m in marks if m.estimate.value is not None]
    if not known:
        return None
    low, high = _range([v for m in known for v in _known(m.estimate)])
    height, right = ROW * len(known) + 26, width - 12

    def x(value: float) -> float:
        return LEFT + (right - LEFT) * (min(max(value, low), high) - low) / (high - low)

    drawn = []
    for k in range(5):
        value = low + (high - low) * k / 4
        drawn.append(line(x(value), 4, x(value), height - 20, "grid" if 0 < k < 4 else "axis"))
        drawn.append(label(f"{100 * value:.4g}%", x(value), height - 6, "end" if k == 4 else "middle"))
    for k, mark in enumerate(known):
        e, y = mark.estimate, 4 + ROW * (k + 0.5)
        if e.low is not None and e.high is not None:
            drawn.append(line(x(e.low), y, x(e.high), y, f"whisker thin {mark.role}"))
        drawn.append(_dot(mark.reference, x(e.value or 0.0), y))
        drawn.append(label(str(mark.number), LEFT - 8, y + 4, "end", "at"))
    said = "; ".join(f"{m.number} {m.name}: {words.percent(m.estimate.value)}" for m in known)
    return figure(key, title, f"{title}. {said}.", *drawn, size=(width, height))


def scatter(key: str, points: Sequence[Point]) -> Markup | None:
    """Recall against FPR, left and up is better; a hollow mark is the guard with its threshold moved."""
    known = [p for p in points if p.fpr.value is not None and p.recall.value is not None]
    if not known:
        return None
    width, height, left, right, top, bottom = 440, 330, 48, 428, 12, 288
    xs = [v for p in known for v in (*_known(p.fpr), *(p.moved[:1] if p.moved else ()))]
    ys = [v for p in known for v in (*_known(p.recall), *(p.moved[1:] if p.moved else ()))]
    most = min(1.0, max(0.1, math.ceil(10 * max(xs)) / 10))
    least = max(0.0, min(0.9, math.floor(10 * min(ys)) / 10))

    def at(fpr: float, recall: float) -> tuple[float, float]:
        return (
            left + (right - left) * min(fpr, most) / most,
            bottom - (bottom - top) * (max(recall, least) - least) / (1 - least),
        )

    drawn = [tag("rect", x=left, y=top, width=right - left, height=bottom - top, class_="frame")]
    for k in range(5):
        fpr, recall = most * k / 4, least + (1 - least) * k / 4
        x, y = at(fpr, recall)
        drawn += [line(x, top, x, bottom, "grid"), label(f"{100 * fpr:.3g}%", x, bottom + 17)]
        drawn += [line(left, y, right, y, "grid"), label(f"{100 * recall:.3g}%", left - 6, y + 4, "end")]
    taken: list[tuple[float, float]] = []
    for p in known:
        x, y = at(p.fpr.value or 0.0, p.recall.value or 0.0)
        role = "ref" if p.reference else "both"
        if p.fpr.low is not None and p.fpr.high is not None:
            drawn.append(line(at(p.fpr.low, 0)[0], y, at(p.fpr.high, 0)[0], y, f"whisker thin {role}"))
        if p.recall.low is not None and p.recall.high is not None:
            drawn.append(line(x, at(0, p.recall.low)[1], x, at(0, p.recall.high)[1], f"whisker thin {role}"))
        if p.moved is not None:
            x2, y2 = at(*p.moved)
            drawn.append(line(x, y, x2, y2, "leader"))
            drawn.append(tag("circle", cx=round(x2, 1), cy=round(y2, 1), r=4, class_=f"hollow {role}"))
            taken.append((x2, y2))
        taken.append((x, y))
    for p in known:
        x, y = at(p.fpr.value or 0.0, p.recall.value or 0.0)
        drawn.append(_dot(p.reference, x, y))
        tx, ty = _free(x, y, taken, (left, right, top, bottom))
        taken.append((tx, ty))
        drawn.append(tag("text", str(p.number), x=round(tx, 1), y=round(ty + 4, 1), class_="at"))
    drawn += [
        label("false positives", (left + right) / 2, height - 8),
        tag(
            "text",
            "recall",
            transform=f"translate(12 {(top + bottom) / 2:g}) rotate(-90)",
            text_anchor="middle",
        ),
    ]
    said = "; ".join(
        f"{p.number} {p.name}: recall {words.percent(p.recall.value)}, FPR {words.percent(p.fpr.value)}"
        for p in known
    )
    title = "Recall against false positives"
    return figure(key, title, f"{title}, left and up is better. {said}.", *drawn, size=(width, height))


def _dot(reference: bool, x: float, y: float) -> Markup:
    if reference:
        return dot("ref", round(x, 1), round(y, 1), 4.2)
    return tag("rect", x=round(x - 3.7, 1), y=round(y - 3.7, 1), width=7.4, height=7.4, class_="dot both")


def _known(estimate: Estimate) -> list[float]:
    return [v for v in (estimate.value, estimate.low, estimate.high) if v is not None]


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The shortest of a few axes, each of four round steps, that holds the values."""
    axes = ((0.8, 1.0), (0.0, 0.2), (0.6, 1.0), (0.0, 0.4), (0.2, 1.0), (0.0, 0.8), (0.0, 1.0))
    return next(a for a in axes if a == axes[-1] or (a[0] <= min(values) and max(values) <= a[1]))


def _free(
    x: float, y: float, taken: Sequence[tuple[float, float]], box: tuple[float, float, float, float]
) -> tuple[float, float]:
    """A place for a number beside a mark that lies on nothing else."""
    left, right, top, bottom = box
    for distance in (13, 20, 28, 38):
        for turn in (45, -45, 135, -135, 0, 180, 90, -90):
            a = x + distance * math.cos(math.radians(turn))
            b = y - distance * math.sin(math.radians(turn))
            inside = left + 8 < a < right - 8 and top + 8 < b < bottom - 8
            if inside and all(abs(a - c) > 12 or abs(b - d) > 11 for c, d in taken):
                return a, b
    return x + 13, y
