"""Numbers → figures: where lines, bands and labels go. Markup and colours are the template's and the style sheet's.

Figures are narrow (360 units), so that their letters stay legible on a telephone, and stand side by side where there
is room.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from guardkeel.moderation.page.history import Past, Table

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 38
COLOURS = 8


@dataclass(frozen=True, slots=True)
class Tick:
    """A label, and where on its axis."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Path:
    """A line or band: its points as SVG writes them, and its classes."""

    points: str
    style: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One figure. `key` is its id on the page."""

    key: str
    title: str
    description: str
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    zero: float | None
    bands: tuple[Path, ...]
    lines: tuple[Path, ...]
    label: str


class _Plane:
    """From numbers to places."""

    def __init__(self, x: tuple[float, float], ticks: Sequence[float]) -> None:
        self.first, self.last, self.ticks = x[0], x[1], ticks

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - self.first) / ((self.last - self.first) or 1)

    def y(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        share = (min(max(value, low), high) - low) / (high - low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    def path(self, pairs: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in pairs)

    def across(self) -> tuple[Tick, ...]:
        middle = round((self.first + self.last) / 2)
        ends = sorted({self.first, middle, self.last})
        return tuple(Tick(self.x(v), f"{v:,.0f}") for v in ends)

    def up(self) -> tuple[Tick, ...]:
        digits = max(0, -math.floor(math.log10(self.ticks[1] - self.ticks[0]) + 1e-9))
        return tuple(Tick(self.y(t), f"{t:,.{digits}f}".replace("-", "−")) for t in self.ticks)


def style_of(expert: int) -> str:
    """Classes of an expert's line: colour and dashes, so that neither is needed alone."""
    return f"e{expert % COLOURS} d{(expert + expert // COLOURS) % 4}"


def weights_chart(key: str, table: Table, experts: Sequence[str]) -> Chart:
    """Weights in one context."""
    points = (
        table.points
        if len(table.points) > 1
        else (*table.points, (table.points[0][0] + 1, table.points[0][1]))
    )
    plane = _Plane((points[0][0], points[-1][0]), (0.0, 0.2, 0.4, 0.6, 0.8, 1.0))
    lines = []
    for i in range(len(experts)):
        pairs = [(sequence, w[i]) for sequence, w in points]
        lines.append(Path(plane.path(pairs), style_of(i)))
    now = ", ".join(f"{n} {w:.2f}" for n, w in zip(experts, table.points[-1][1], strict=True))
    name = " / ".join(table.context) or "all items"
    return Chart(
        key,
        f"Weights, {name}",
        f"Weight of each expert by number of the feedback. Now: {now}.",
        plane.across(),
        plane.up(),
        None,
        (),
        tuple(lines),
        "feedback, in the order of the log",
    )


def loss_chart(key: str, past: Past) -> Chart:
    """Cumulative loss of the ensemble and of every expert."""
    stages = past.stages
    values = [v for s in stages for v in (s.ensemble, *s.experts)]
    plane = _Plane((0, stages[-1].reviews), round_ticks(min(0.0, *values), max(values)))
    lines = [
        Path(plane.path([(0, 0), *((s.reviews, s.experts[i]) for s in stages)]), style_of(i))
        for i in range(len(past.experts))
    ]
    lines.append(Path(plane.path([(0, 0), *((s.reviews, s.ensemble) for s in stages)]), "ensemble"))
    return Chart(
        key,
        "Loss so far",
        f"Estimated cumulative loss over all served items, by reviews. The ensemble has {stages[-1].ensemble:.1f}.",
        plane.across(),
        plane.up(),
        None,
        (),
        tuple(lines),
        "items reviewed of those drawn",
    )


def regret_chart(key: str, past: Past) -> Chart:
    """Regret against the best expert with its interval, and the naive estimate."""
    stages = past.stages
    settled = stages[len(stages) // 4 :]  # intervals of the first few reviews are as wide as the world
    values = [v for s in settled for v in (s.best.low, s.best.high, s.naive)]
    values += [v for s in stages for v in (s.best.value, s.naive)]
    plane = _Plane(
        (stages[0].reviews, max(stages[-1].reviews, stages[0].reviews + 1)),
        round_ticks(min(0.0, *values), max(0.0, *values)),
    )
    upper = [(s.reviews, s.best.high) for s in stages]
    lower = [(s.reviews, s.best.low) for s in reversed(stages)]
    best = stages[-1].best
    return Chart(
        key,
        "Regret against the best expert",
        f"Loss of the ensemble less that of the best expert: {best.value:.1f}, 95% interval {best.low:.1f} to "
        f"{best.high:.1f}; by the naive estimate {stages[-1].naive:.1f}.",
        plane.across(),
        plane.up(),
        plane.y(0.0),
        (Path(plane.path([*upper, *lower]), "band"),),
        (
            Path(plane.path([(s.reviews, s.naive) for s in stages]), "naive"),
            Path(plane.path([(s.reviews, s.best.value) for s in stages]), "ensemble"),
        ),
        "items reviewed of those drawn",
    )


def round_ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that hold both."""
    reach = max(high - low, 1e-6)
    size = 10 ** math.floor(math.log10(reach / 4))
    step = next(m * size for m in (1, 2, 5, 10) if m * size * 5 >= reach * (1 - 1e-9))
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(start, max(end, start + 1) + 1)]
