"""Figures of a collapse report: recall by arm, task gain against recall, and what longer or hotter training does.

Pure functions of a table's rows. Plain is a square and the reference a circle, as elsewhere; a hollow mark stands for
the shipped threshold, a full one for the reference's FPR. Arms carry the number that they have in the tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from guardkeel.report import words
from guardkeel.report.plots import dot, figure, label, line, path, tag
from guardkeel.tuning.collapse.figures import PLAIN, RECALIBRATED, REFERENCE, Row

WIDTH, HEIGHT = 300, 24  # of a row of the forest
_LEFT, _RIGHT = 10, 290


def role(arm: str) -> str:
    """Whose colour and shape an arm has."""
    return {REFERENCE: "ref", PLAIN: "cand", RECALIBRATED: "cand"}.get(arm, "both")


def floor_of(rows: Sequence[Row]) -> float:
    """Where the recall axis of these rows begins: 0, a quarter, a half or three quarters."""
    ends = [
        v
        for r in rows
        for f in (r.pooled.shipped, r.pooled.recalibrated)
        for v in (f.value, f.low)
        if v is not None
    ]
    return min(0.75, math.floor(4 * min(ends, default=0.0)) / 4)


def forest_row(row: Row, guides: str, floor: float) -> Markup:
    """One arm's recall as shipped (hollow) and at the reference's FPR (full), with intervals over items.

    Marks and guides are elements of the page, by id; the numbers stand in the table beside, so readers skip this.
    """
    shipped, moved, kind = row.pooled.shipped, row.pooled.recalibrated, role(row.arm)
    known = [(f, y) for f, y in ((shipped, 7), (moved, 17)) if f.value is not None]
    ends = [(f.low, f.high, y) for f, y in known]
    bars = "".join(
        f"M{_x(low, floor):g} {y}H{_x(high, floor):g}"
        for low, high, y in ends
        if low is not None and high is not None
    )
    shape = "#square" if kind == "cand" else "#round"
    return tag(
        "svg",
        tag("use", href=f"#{guides}"),
        *([tag("path", d=bars)] if bars else []),
        *(
            tag("use", href=shape, x=_x(f.value or 0.0, floor), y=y, class_="h" if f is shipped else None)
            for f, y in known
        ),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        aria_hidden="true",
        class_={"ref": "fr", "cand": "fc"}.get(kind),
    )


def forest_guides(key: str, reference: Row | None, margin: float, floor: float) -> Markup:
    """The line of the reference at its own FPR, and the dashed line a margin below it; every row repeats them."""
    held = reference.pooled.recalibrated.value if reference is not None else None
    marks = []
    if held is not None:
        marks.append(line(_x(held, floor), 0, _x(held, floor), HEIGHT, "axis"))
        if held - margin > floor:
            marks.append(line(_x(held - margin, floor), 0, _x(held - margin, floor), HEIGHT, "margin faint"))
    return tag("g", *marks, id=key)


def _x(value: float, floor: float) -> float:
    return round(_LEFT + (_RIGHT - _LEFT) * (min(max(value, floor), 1.0) - floor) / (1 - floor), 1)


def forest_axis(guides: Markup, floor: float) -> Markup:
    """The numbers above a forest, and its guides, for the rows to repeat."""
    marks = [tag("defs", guides)]
    for i in range(5):
        value = floor + (1 - floor) * i / 4
        at = _LEFT + (_RIGHT - _LEFT) * i / 4
        end = {0: (0.0, "start"), 4: (float(WIDTH), "end")}.get(i, (at, "middle"))
        marks.append(label(f"{100 * value:.4g}%", end[0], 13, end[1]))
        marks.append(line(at, 18, at, HEIGHT, "axis"))
    return tag("svg", *marks, viewBox=f"0 0 {WIDTH} {HEIGHT}", aria_hidden="true", class_="plot")


def scatter(key: str, rows: Sequence[Row], numbers: dict[str, int], reference: Row | None) -> Markup | None:
    """Recall kept against task gain kept, a mark an arm; None where no arm has both.

    Recall kept: at the reference's FPR, as a share of the reference's. Values outside the axes sit on their edge.
    """
    held = reference.pooled.recalibrated.value if reference is not None else None
    known = [
        (row, row.task.kept.value, row.pooled.recalibrated.value / held)
        for row in rows
        if held and row.task.kept.value is not None and row.pooled.recalibrated.value is not None
        if row.arm != RECALIBRATED  # the same place as plain
    ]
    if not known:
        return None
    width, height, left, right, top, bottom = 440, 330, 48, 428, 12, 288
    lows = [
        _step_down(min(values, default=0.0)) for values in ([g for _, g, _ in known], [r for *_, r in known])
    ]
    highs = [max(1.1, min(1.5, max(values))) for values in ([g for _, g, _ in known], [r for *_, r in known])]

    def at(gain: float, recall: float) -> tuple[float, float]:
        across, up = (
            (min(max(v, lo), hi) - lo) / (hi - lo)
            for v, lo, hi in zip((gain, recall), lows, highs, strict=True)
        )
        return left + (right - left) * across, bottom - (bottom - top) * up

    marks = [tag("rect", x=left, y=top, width=right - left, height=bottom - top, class_="frame")]
    for k in range(5):
        for axis, (lo, hi) in enumerate(zip(lows, highs, strict=True)):
            value = round(lo + (1 - lo) * k / 4, 4)
            if value > hi:
                continue
            x, y = at(value, lows[1]) if axis == 0 else at(lows[0], value)
            if axis == 0:
                marks += [line(x, top, x, bottom, "grid"), label(f"{value:.0%}", x, bottom + 17)]
            else:
                marks += [line(left, y, right, y, "grid"), label(f"{value:.0%}", left - 6, y + 4, "end")]
    x, y = at(0.95, 1)
    marks.append(line(x, top, x, bottom, "margin faint"))
    marks.append(line(left, y, right, y, "axis"))
    marks += _numbered([(row, *at(gain, recall)) for row, gain, recall in known], numbers, right)
    marks += [
        label("task gain kept", (left + right) / 2, height - 8),
        tag(
            "text",
            "recall kept",
            transform=f"translate(12 {(top + bottom) / 2:g}) rotate(-90)",
            text_anchor="middle",
        ),
    ]
    said = "; ".join(f"{numbers.get(r.arm, 0)} {r.arm}: gain {g:.0%}, recall {c:.0%}" for r, g, c in known)
    title = "Task gain kept against recall kept"
    return figure(key, title, f"{title}, right and up is better. {said}.", *marks, size=(width, height))


def _numbered(
    points: Sequence[tuple[Row, float, float]], numbers: dict[str, int], right: float
) -> list[Markup]:
    """Marks with their numbers, moved apart where they would lie on each other."""
    taken: list[tuple[float, float]] = [(x, y) for _, x, y in points]
    marks, texts = [], []
    for row, x, y in sorted(points, key=lambda p: (p[2], p[1])):
        place = next(
            (
                (x + dx, y + dy)
                for distance in (11, 19, 27, 35, 43, 51)
                for dx, dy in _around(distance)
                if x + dx < right + 8 and all(abs(x + dx - a) > 13 or abs(y + dy - b) > 11 for a, b in taken)
            ),
            (x + 11, y),
        )
        taken.append(place)
        if math.dist(place, (x, y)) > 15:
            marks.append(tag("path", d=f"M{x:.0f} {y:.0f}L{place[0]:.0f} {place[1]:.0f}", class_="leader"))
        texts.append(
            tag(
                "text",
                str(numbers.get(row.arm, 0)),
                x=round(place[0], 1),
                y=round(place[1] + 4, 1),
                class_="at",
            )
        )
        marks.append(dot(role(row.arm), round(x, 1), round(y, 1), 4.2))
    return [*marks, *texts]


def _around(distance: float) -> list[tuple[float, float]]:
    """Places around a point, right first."""
    turns = (0, 45, -45, 90, -90, 135, -135, 180, 22, -22, 67, -67)
    return [(distance * math.cos(math.radians(t)), distance * math.sin(math.radians(t))) for t in turns]


def lines(key: str, rows: Sequence[Row], numbers: dict[str, int], order: Sequence[str]) -> Markup | None:
    """Recall at the reference's FPR of each arm from variant to variant; None where no arm has two of them.

    `order` are the variants from left to right, the base ("") among them.
    """
    by_arm: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda r: order.index(r.variant)):
        if row.arm not in (REFERENCE, RECALIBRATED) and row.pooled.recalibrated.value is not None:
            by_arm.setdefault(row.arm, []).append(row)
    chosen = {arm: found for arm, found in by_arm.items() if len(found) > 1}
    if not chosen:
        return None
    width, height, left, right, top, bottom = 440, 256, 44, 400, 12, 228

    def at(row: Row) -> tuple[float, float]:
        across = order.index(row.variant) / max(1, len(order) - 1)
        return left + 14 + (right - left - 28) * across, bottom - (bottom - top) * (
            row.pooled.recalibrated.value or 0
        )

    marks = []
    for k in range(5):
        y = bottom - (bottom - top) * k / 4
        marks += [line(left, y, right, y, "grid"), label(f"{25 * k}%", left - 6, y + 4, "end")]
    for k, variant in enumerate(order):
        x = left + 14 + (right - left - 28) * k / max(1, len(order) - 1)
        marks.append(label(_short(variant or "base"), x, bottom + 18))
    drawn = sorted(chosen.items(), key=lambda c: at(c[1][-1])[1])
    places = _apart([at(found[-1])[1] for _, found in drawn], bottom + 4)
    for (arm, found), place in zip(drawn, places, strict=True):
        corners, kind = [at(r) for r in found], role(arm)
        marks.append(tag("polyline", points=path(corners), class_=f"line thin {kind}"))
        marks += [dot(kind, x, y, 3.6) for x, y in corners]
        x, y = corners[-1]
        if abs(place - y) > 4:
            marks.append(line(x, y, right + 2, place, "leader"))
        marks.append(label(str(numbers.get(arm, 0)), right + 12, place + 4, "middle", "strong"))
    marks.append(line(left, bottom, right, bottom, "axis"))
    said = "; ".join(
        f"{numbers.get(arm, 0)} {arm}: "
        + ", ".join(f"{r.variant or 'base'} {words.percent(r.pooled.recalibrated.value)}" for r in found)
        for arm, found in chosen.items()
    )
    title = "Recall under longer and hotter training"
    return figure(key, title, f"{title}. {said}.", *marks, size=(width, height))


def _apart(heights: Sequence[float], lowest: float, gap: float = 13) -> list[float]:
    """Heights (ascending) moved so that labels there do not touch, none below `lowest` where there is room."""
    found: list[float] = []
    for h in heights:
        found.append(max(h, found[-1] + gap) if found else h)
    for i in range(len(found) - 1, -1, -1):
        found[i] = min(found[i], lowest if i == len(found) - 1 else found[i + 1] - gap)
    return found


def _step_down(value: float) -> float:
    """The next fifth below, within −0.6 and 0.8: where an axis begins."""
    return min(0.8, max(-0.6, math.floor(5 * (value - 0.02)) / 5))


def _short(text: str, most: int = 12) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
