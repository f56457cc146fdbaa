"""The geometry of an audit as panels: one measure by layer, its figure, and the table beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from guardkeel.records import Estimate
from guardkeel.report import words
from guardkeel.report.charts import Null, Series, panel
from guardkeel.results import LayerGeometry, Measure


@dataclass(frozen=True, slots=True)
class Panel:
    """One small multiple: `rows` hold a layer's cells under `columns`."""

    title: str
    meaning: str
    figure: Markup
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class _Shape:
    """How a measure is drawn: who is on it, and the ends that its axis must hold."""

    title: str
    meaning: str
    lines: tuple[tuple[str, str, Callable[[LayerGeometry], Measure | Estimate | None]], ...]
    low: float | None = None
    high: float | None = None


_SHAPES = (
    _Shape(
        "Similarity (CKA)",
        "1: activations as before; 0: unrelated",
        (("both", "CKA", lambda g: g.cka),),
        0.0,
        1.0,
    ),
    _Shape(
        "Separability",
        "distance of unsafe from safe; higher is better",
        (
            ("ref", "Reference", lambda g: g.separability_reference),
            ("cand", "Candidate", lambda g: g.separability_candidate),
        ),
        0.0,
    ),
    _Shape(
        "Probe AUROC",
        "what a linear probe can still read; 0.5 is chance",
        (
            ("ref", "Reference", lambda g: g.probe_reference),
            ("cand", "Candidate", lambda g: g.probe_candidate),
        ),
        0.5,
        1.0,
    ),
    _Shape(
        "Subspace overlap",
        "1: the safety subspace points the same way",
        (("both", "Overlap", lambda g: g.overlap),),
        0.0,
        1.0,
    ),
    _Shape(
        "Drift", "how far activations moved, by their spread", (("both", "Drift", lambda g: g.drift),), 0.0
    ),
    _Shape(
        "Drift inside the subspace",
        "share of the movement in safety directions",
        (("both", "Share inside", lambda g: g.drift_inside),),
        0.0,
    ),
)


def panels(layers: list[LayerGeometry]) -> list[Panel]:
    """A panel for each measure that any layer has, in a fixed order."""
    found = [p for number, shape in enumerate(_SHAPES) if (p := _panel(f"geo{number}", shape, layers))]
    angles = _angles(layers)
    return [*found[:4], *angles, *found[4:]]


def _panel(key: str, shape: _Shape, layers: list[LayerGeometry]) -> Panel | None:
    series: list[Series] = []
    null: list[Null] = []
    columns = ["Layer"]
    cells: list[list[str]] = [[str(g.layer)] for g in layers]
    for role, name, pick in shape.lines:
        measures = [(g.layer, pick(g)) for g in layers]
        if all(m is None for _, m in measures):
            continue
        series.append(Series(role, tuple((layer, _estimate(m)) for layer, m in measures if m is not None)))
        columns.append(name)
        for row, (_, m) in zip(cells, measures, strict=True):
            row.append(_cell(m))
        if any(isinstance(m, Measure) and m.null_mean is not None for _, m in measures):
            columns.append("Chance (95% below)")
            for row, (_, m) in zip(cells, measures, strict=True):
                row.append(_null_cell(m))
            if not null:
                null = [
                    Null(layer, m.null_mean, m.null_high) for layer, m in measures if isinstance(m, Measure)
                ]
    if not series:
        return None
    return Panel(
        shape.title,
        shape.meaning,
        panel(
            key,
            f"{shape.title} by layer",
            f"{shape.meaning}. {_spoken(series)}",
            series,
            [n for n in null if n.mean is not None or n.high is not None],
            low=shape.low,
            high=shape.high,
        ),
        tuple(columns),
        tuple(map(tuple, cells)),
    )


def _angles(layers: list[LayerGeometry]) -> list[Panel]:
    """Principal angles: the median of each layer, with the smallest and the largest as its ends."""
    found = [(g.layer, sorted(g.principal_angles)) for g in layers if g.principal_angles]
    if not found:
        return []
    points = tuple(
        (layer, Estimate(value=_median(a), low=a[0], high=a[-1], n=len(a), note="smallest to largest angle"))
        for layer, a in found
    )
    meaning = "median, smallest and largest; 0° is no turn"
    figure = panel(
        "geo-angles",
        "Principal angles by layer",
        f"Angles between the safety subspaces: {meaning}.",
        [Series("both", points)],
        low=0.0,
        high=90.0,
        step=30.0,
        unit="°",
    )
    return [
        Panel(
            "Principal angles",
            meaning,
            figure,
            ("Layer", "Smallest", "Median", "Largest", "Directions"),
            tuple(
                (str(layer), *(f"{v:.1f}°" for v in (a[0], _median(a), a[-1])), str(len(a)))
                for layer, a in found
            ),
        )
    ]


def lowlights(layers: list[LayerGeometry]) -> list[str]:
    """Where each measure moved most, in a sentence each; what no layer has is left out."""
    said = []
    alike = [(g.cka.estimate.value, g.layer) for g in layers if g.cka and g.cka.estimate.value is not None]
    if alike:
        value, layer = min(alike)
        most = "Activations changed most at layer" if len(alike) > 1 else "Likeness of activations at layer"
        said.append(f"{most} {layer}: CKA {words.decimal(value)}.")
    for name, pairs in (
        ("Separability", [(g.layer, g.separability_reference, g.separability_candidate) for g in layers]),
        ("A probe’s AUROC", [(g.layer, g.probe_reference, g.probe_candidate) for g in layers]),
    ):
        moved = [
            (b - a, layer, a, b)
            for layer, before, after in pairs
            if (a := before.estimate.value) is not None and after and (b := after.estimate.value) is not None
        ]
        if moved:
            by, layer, a, b = min(moved)
            verb = "fell most" if by < 0 else "fell nowhere and rose least"
            verb = verb if len(moved) > 1 else "moved"
            said.append(f"{name} {verb} at layer {layer}: {words.decimal(a)} → {words.decimal(b)}.")
    inside = [
        share > g.drift_inside.null_high
        for g in layers
        if g.drift_inside
        and (share := g.drift_inside.estimate.value) is not None
        and g.drift_inside.null_high is not None
    ]
    if inside:
        said.append(
            f"Drift leans to the safety subspace more than chance at {sum(inside)} of {len(inside)} layers."
        )
    return said


def _median(ordered: list[float]) -> float:
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _estimate(measure: Measure | Estimate) -> Estimate:
    return measure.estimate if isinstance(measure, Measure) else measure


def _cell(measure: Measure | Estimate | None) -> str:
    if measure is None:
        return words.NOTHING
    e = _estimate(measure)
    if e.value is None:
        return f"{words.NOTHING} ({e.note})" if e.note else words.NOTHING
    value = words.decimal(e.value)
    return (
        value
        if e.low is None or e.high is None
        else f"{value} [{words.decimal(e.low)}, {words.decimal(e.high)}]"
    )


def _null_cell(measure: Measure | Estimate | None) -> str:
    if not isinstance(measure, Measure) or measure.null_mean is None:
        return words.NOTHING
    p = "" if measure.p is None else f", p {words.probability(measure.p)}"
    high = "" if measure.null_high is None else f" ({words.decimal(measure.null_high)})"
    return f"{words.decimal(measure.null_mean)}{high}{p}"


def _spoken(series: list[Series]) -> str:
    """First and last layer of each line, for those who cannot see it."""
    names = {"ref": "reference", "cand": "candidate", "both": "value"}
    said = []
    for s in series:
        known = [(layer, e.value) for layer, e in s.points if e.value is not None]
        if known:
            (a, x), (b, y) = known[0], known[-1]
            said.append(f"{names[s.role]}: {words.decimal(x)} at layer {a}, {words.decimal(y)} at layer {b}")
    return "; ".join(said)
