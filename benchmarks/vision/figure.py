"""The figure of docs/vision.md: what adaptation did to texts and pictures, over α and layer by layer; arms as lines.

Thick: the mean of the seeds; dots: each seed. An arm whose language part is frozen has no α: it is drawn level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from guardkeel.report.plots import label, line, path, tag
from guardkeel.vision.adapt.results import AdaptResults, Look

WIDE, HIGH, LEFT, TOP, GAP_X, GAP_Y = 210, 170, 44, 58, 56, 84
COLOURS = {"plain": "#c2410c", "safety-sft": "#0b62a4", "fwssr": "#15803d", "freeze-language": "#7e22ce"}
DASHES = {"plain": "", "safety-sft": "7 3", "fwssr": "2 2", "freeze-language": "8 3 2 3"}
STYLE = """
svg { background: #fff; font: 12px system-ui, sans-serif } text { fill: #333 } .title { font-weight: 600 }
.axis { stroke: #777 } .grid { stroke: #e4e4e4 } .before { stroke: #333; stroke-dasharray: 1 3; stroke-width: 1.5 }
polyline { fill: none; stroke-width: 2 } circle { fill-opacity: .45 }
"""
STYLE += "".join(
    f".{arm} {{ stroke: {colour}; stroke-dasharray: {DASHES[arm] or 'none'} }}\n"
    f"circle.{arm} {{ fill: {colour}; stroke: none }}\n"
    for arm, colour in COLOURS.items()
)

Found = Mapping[str, Mapping[str, Sequence[AdaptResults]]]
"""By subject and arm, the results of the seeds."""


@dataclass(frozen=True)
class Panel:
    """Series of (seeds, points) by arm; what it was before is a level line."""

    title: str
    across: str
    xs: Sequence[float]
    series: Mapping[str, np.ndarray]
    before: float | None = None
    top: float | None = 1.0


def panels(arms: Mapping[str, Sequence[AdaptResults]], alphas: Sequence[float], chat: bool) -> list[Panel]:
    """Four for a subject."""

    def over(value: str) -> dict[str, np.ndarray]:
        return {arm: np.array([_over(r, alphas, value) for r in seeds], float) for arm, seeds in arms.items()}

    some = next(iter(arms.values()))[0]
    before = some.reference
    layers = {
        arm: np.array([[layer.drift for layer in r.looks[-1].layers] for r in seeds], float)
        for arm, seeds in arms.items()
    }
    depth = [layer.layer for layer in some.looks[-1].layers]
    what = "Harmful texts refused" if chat else "Recall of harmful texts"
    return [
        Panel(what, "share α of the change", alphas, over("recall"), before.recall.value),
        Panel("AUROC on texts", "share α of the change", alphas, over("auroc"), before.auroc.value),
        Panel("Accuracy on pictures", "share α of the change", alphas, over("accuracy"), some.chance),
        Panel("Drift at the end", "layer", depth, layers, None, None),
    ]


def _over(results: AdaptResults, alphas: Sequence[float], value: str) -> list[float | None]:
    by_alpha = {look.alpha: look for look in results.merged}
    return [_value(by_alpha.get(a, results.looks[-1]), value) for a in alphas]


def _value(look: Look, value: str) -> float | None:
    return (look.accuracy if value == "accuracy" else getattr(look.text, value)).value  # type: ignore[no-any-return]


def figure(found: Found, alphas: Sequence[float]) -> str:
    """A standalone SVG: a row of panels for each subject."""
    marks: list[Markup] = []
    for row, (subject, arms) in enumerate(found.items()):
        top = TOP + row * (HIGH + GAP_Y)
        for column, panel in enumerate(panels(arms, alphas, subject == "chat")):
            marks += drawn(panel, LEFT + column * (WIDE + GAP_X), top, f"{subject}: {panel.title}")
    width = LEFT + 4 * (WIDE + GAP_X)
    names = list(dict.fromkeys(arm for arms in found.values() for arm in arms))
    for k, name in enumerate(names):
        x = LEFT + 166 * k
        marks.append(tag("polyline", points=path([(x, 16), (x + 34, 16)]), class_=name))
        marks.append(label(name, x + 42, 20, "start"))
    x = LEFT + 166 * len(names)
    marks += [line(x, 16, x + 34, 16, "before"), label("before; of pictures: guessing", x + 42, 20, "start")]
    svg = tag(
        "svg",
        tag("title", "What vision adaptation did to the safety of texts, by arm, share α and layer"),
        tag("style", Markup(STYLE)),
        *marks,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {TOP + len(found) * (HIGH + GAP_Y) - 20}",
        role="img",
    )
    return str(svg)


def drawn(panel: Panel, left: float, top: float, title: str) -> list[Markup]:
    """One panel's marks."""
    ceiling = panel.top or max(
        0.1, float(np.ceil(10 * max(np.nanmax(s) for s in panel.series.values())) / 10)
    )
    first, span = panel.xs[0], (panel.xs[-1] - panel.xs[0]) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        return round(left + WIDE * (x - first) / span, 1), round(top + HIGH * (1 - y / ceiling), 1)

    marks = [label(title, left, top - 12, "start", "title")]
    for k in range(5):
        _, y = at(first, ceiling * k / 4)
        marks += [
            line(left, y, left + WIDE, y, "grid"),
            label(f"{ceiling * k / 4:.3g}", left - 6, y + 4, "end"),
        ]
    every = max(1, len(panel.xs) // 6)
    marks += [label(f"{x:g}", at(x, 0)[0], top + HIGH + 16) for x in panel.xs[::every]]
    marks += [
        label(panel.across, left + WIDE / 2, top + HIGH + 34),
        line(left, top + HIGH, left + WIDE, top + HIGH, "axis"),
    ]
    if panel.before is not None:
        y = at(first, panel.before)[1]
        marks.append(line(left, y, left + WIDE, y, "before"))
    for arm, seeds in panel.series.items():
        marks.append(
            tag(
                "polyline",
                points=path([at(x, y) for x, y in zip(panel.xs, seeds.mean(0), strict=True)]),
                class_=arm,
            )
        )
        if len(panel.xs) <= 8:
            marks += [
                tag("circle", cx=at(x, v)[0], cy=at(x, v)[1], r=2.6, class_=arm)
                for s in seeds
                for x, v in zip(panel.xs, s, strict=True)
            ]
    return marks
