"""Figures of an adaptation and of a multi-image run. Pure functions of numbers; lines differ in dashes too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from guardkeel.report import words
from guardkeel.report.plots import figure, label, line, path, tag
from guardkeel.vision.mis.judging import OUTCOMES, SHORT, Outcomes

_LEFT, _TOP, _BOTTOM, _WIDTH, _HEIGHT = 48, 12, 204, 560, 246
_RIGHT = 440  # names of lines stand right of it
_NEAR = 13  # pixels between two names


def lines(
    key: str,
    title: str,
    across: str,
    xs: Sequence[float],
    series: Mapping[str, Sequence[float | None]],
    *,
    percent: bool = True,
    level: tuple[str, float] | None = None,
) -> Markup | None:
    """Values over steps, layers or α, a line for each name; None without values.

    `level` is a dashed line to compare with. The axis goes from 0 to 1 for shares, else from 0 (or the least value) to
    the largest.
    """
    known = [v for values in series.values() for v in values if v is not None]
    if not known or not xs:
        return None
    low, high = (0.0, 1.0) if percent else (min(0.0, *known), max(known) or 1.0)
    span, wide = (high - low) or 1.0, (xs[-1] - xs[0]) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            round(_LEFT + 8 + (_RIGHT - _LEFT - 16) * (x - xs[0]) / wide, 1),
            round(_BOTTOM - (_BOTTOM - _TOP) * (min(max(y, low), high) - low) / span, 1),
        )

    marks = []
    for k in range(5):
        value = low + span * k / 4
        _, y = at(xs[0], value)
        said = f"{value:.0%}" if percent else f"{value:.3g}"
        marks += [line(_LEFT, y, _RIGHT, y, "grid"), label(said, _LEFT - 6, y + 4, "end")]
    every = max(1, math.ceil(len(xs) / 10))
    marks += [label(f"{x:g}", at(x, low)[0], _BOTTOM + 17) for x in xs[::every]]
    marks.append(label(across, (_LEFT + _RIGHT) / 2, _HEIGHT - 6))
    if level is not None:
        _, y = at(xs[0], level[1])
        marks.append(line(_LEFT, y, _RIGHT, y, "margin faint"))
    ends = []
    for n, (name, values) in enumerate(series.items()):
        corners = [at(x, v) for x, v in zip(xs, values, strict=True) if v is not None]
        if corners:
            marks.append(tag("polyline", points=path(corners), class_=f"line thin series s{n % 4}"))
            marks += [tag("circle", cx=x, cy=y, r=2.4, class_=f"mark s{n % 4}") for x, y in corners]
            ends.append((corners[-1][1], name))
    if level is not None:
        ends.append((at(xs[0], level[1])[1], level[0]))
    marks += [label(name, _RIGHT + 8, y + 4, "start") for y, name in _apart(ends)]
    told = "; ".join(
        f"{name}: " + ", ".join(f"{x:g} {_said(v, percent)}" for x, v in zip(xs, values, strict=True))
        for name, values in series.items()
    )
    return figure(key, title, f"{title}. {told}.", *marks, size=(_WIDTH, _HEIGHT))


def outcome_bars(key: str, title: str, rows: Mapping[str, Outcomes]) -> Markup | None:
    """One bar a row, cut into the four outcomes; None where nothing was judged."""
    shown = {name: row.percentages() for name, row in rows.items()}
    if not any(shown.values()):
        return None
    left, high, wide = 150, 26, 390
    marks, told = [], []
    for k, (name, shares) in enumerate(shown.items()):
        y = 10 + k * (high + 10)
        marks.append(label(name, left - 8, y + high / 2 + 4, "end"))
        x = float(left)
        for n, outcome in enumerate(OUTCOMES):
            short = SHORT[outcome]
            share = shares.get(short, 0.0)
            width = wide * share / 100
            if width > 0:
                said = tag("title", f"{name}: {short} {share:g}%")
                marks.append(
                    tag(
                        "rect",
                        said,
                        x=round(x, 1),
                        y=y,
                        width=round(width, 1),
                        height=high,
                        class_=f"share o{n}",
                    )
                )
                if width > 44:
                    marks.append(
                        label(f"{short} {share:g}%", x + width / 2, y + high / 2 + 4, class_=f"on o{n}")
                    )
            x += width
        told.append(f"{name}: " + (", ".join(f"{s} {v:g}%" for s, v in shares.items()) or "nothing judged"))
    return figure(
        key, title, f"{title}. {'; '.join(told)}.", *marks, size=(_WIDTH, 14 + len(shown) * (high + 10))
    )


def _apart(ends: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Names of lines at their ends, moved down where they would lie on one another, up where they would leave."""
    placed: list[tuple[float, str]] = []
    for y, name in sorted(ends):
        placed.append((max(y, placed[-1][0] + _NEAR) if placed else y, name))
    over = max(0.0, placed[-1][0] - _BOTTOM) if placed else 0.0
    return [(y - over, name) for y, name in placed]


def _said(value: float | None, percent: bool) -> str:
    return words.percent(value) if percent else words.decimal(value)
