"""Inline SVG: elements, and the small figures that stand in rows and tiles beside the numbers they show.

Pure functions of numbers, escaped, without colours of their own: colour, hatching and dark mode come from the
page's style sheet through classes. `ref` (circles, solid lines) and `cand` (squares, dashed lines) differ in
shape too.
"""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup, escape

from guardkeel.records import Estimate
from guardkeel.report.texts import plain

Point = tuple[float, float]


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """An element. `class_` means class, `_` in names `-`; numbers are shortened; all else is escaped."""
    found = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    body = Markup("").join(c if isinstance(c, Markup) else escape(plain(str(c))) for c in children)
    return Markup(f"<{name}{found}>{body}</{name}>")  # noqa: S704 - every part is escaped above


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def label(text: str, x: float, y: float, anchor: str = "middle", class_: str | None = None) -> Markup:
    """A word or number in a figure; `anchor` is start, middle or end."""
    return tag("text", text, x=x, y=y, text_anchor=anchor, class_=class_)


def path(points: Iterable[Point]) -> str:
    """Points as the attribute of a polyline or polygon."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def dot(role: str, x: float, y: float, size: float = 4.5) -> Markup:
    """A guard's mark: a square for the candidate, else a circle."""
    if role == "cand":
        return tag(
            "rect", x=x - size * 0.9, y=y - size * 0.9, width=size * 1.8, height=size * 1.8, class_="dot cand"
        )
    return tag("circle", cx=x, cy=y, r=size, class_=f"dot {role}")


def figure(
    key: str,
    title: str,
    description: str,
    *marks: Markup,
    size: tuple[float, float],
    class_: str = "",
) -> Markup:
    """An SVG with a name and a description for those who cannot see it. `key` must be unique on the page."""
    return tag(
        "svg",
        tag("title", title, id=f"{key}-t"),
        tag("desc", description, id=f"{key}-d"),
        *marks,
        viewBox=f"0 0 {size[0]:g} {size[1]:g}",
        role="img",
        aria_labelledby=f"{key}-t {key}-d",
        class_=f"plot {class_}".strip(),
    )


def whiskers(
    name: str, reference: Estimate, candidate: Estimate | None, *, low: float = 0.0, wide: bool = False
) -> Markup:
    """A dot with its interval for each guard, on an axis from `low` to 1 with ticks at the quarters."""
    width, height = (240, 30) if wide else (150, 30)

    def x(value: float) -> float:
        return 6 + (width - 12) * (min(max(value, low), 1.0) - low) / (1.0 - low)

    ticks = [low + (1 - low) * q / 4 for q in range(5)]
    marks = [line(x(t), 2, x(t), height - 2, "grid" if 0 < i < 4 else "axis") for i, t in enumerate(ticks)]
    rows = [("ref", reference, 9.0 if candidate else height / 2)]
    if candidate is not None:
        rows.append(("cand", candidate, height - 9.0))
    for role, e, y in rows:
        if e.value is None:
            continue
        if e.low is not None and e.high is not None:
            marks.append(line(x(e.low), y, x(e.high), y, f"whisker {role}"))
        marks.append(dot(role, x(e.value), y))
    return _cell(name, width, height, marks)


def harm(name: str, value: float, low: float | None, high: float | None, margin: float) -> Markup:
    """A harm with its interval in units of its margin, from −2 to 4; arrows lead beyond."""
    width, height, first, last = 180, 30, -2.0, 4.0
    middle = height / 2

    def x(margins: float) -> float:
        return 8 + (width - 16) * (min(max(margins, first), last) - first) / (last - first)

    marks = [
        tag("rect", x=x(1), y=2, width=x(last) - x(1), height=height - 4, class_="harm"),
        line(x(0), 2, x(0), height - 2, "axis"),
        line(x(1), 2, x(1), height - 2, "margin"),
    ]
    ends = [v / margin for v in (value, low, high) if v is not None]
    marks.append(line(x(min(ends)), middle, x(max(ends)), middle, "whisker both"))
    if max(ends) > last:
        marks.append(tag("path", d=f"M{width - 9} {middle - 6}l9 6l-9 6z", class_="beyond"))
    if min(ends) < first:
        marks.append(tag("path", d=f"M9 {middle - 6}l-9 6l9 6z", class_="beyond"))
    if first <= value / margin <= last:
        marks.append(dot("both", x(value / margin), middle))
    return _cell(name, width, height, marks)


def track(name: str, scores: Iterable[tuple[str, float | None]], threshold: float) -> Markup:
    """Scores of one item on a line from 0 to 1, with the threshold."""
    width = 116

    def x(value: float) -> float:
        return 8 + (width - 16) * min(max(value, 0.0), 1.0)

    marks = [line(8, 11, width - 8, 11, "axis"), line(x(threshold), 3, x(threshold), 19, "threshold")]
    marks += [dot(role, x(s), 11, 4) for role, s in scores if s is not None]
    return _cell(name, width, 22, marks)


def split_bar(ranking: float, operating: float) -> Markup:
    """A bar divided into recall lost to ranking and to the operating point, both ≥ 0, with a sum above 0."""
    share = 100 * ranking / (ranking + operating)
    return tag(
        "svg",
        tag("title", f"{share:.0f}% of the loss is ranking, {100 - share:.0f}% is operating point"),
        tag("rect", x=0, y=0, width=share, height=10, class_="lost-ranking"),
        tag("rect", x=share, y=0, width=100 - share, height=10, class_="lost-operating"),
        line(share, 0, share, 10, "cut"),
        viewBox="0 0 100 10",
        preserveAspectRatio="none",
        role="img",
        class_="plot bar",
    )


def _cell(name: str, width: int, height: int, marks: Iterable[Markup]) -> Markup:
    """A small figure that stands in a row of text and numbers, which say the same."""
    return tag(
        "svg",
        tag("title", name),
        *marks,
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        class_="plot cell",
    )


def _short(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
