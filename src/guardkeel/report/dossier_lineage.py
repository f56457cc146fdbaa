"""The lineage of models as a drawing: what each was made from, left to right, and which are in use."""

from __future__ import annotations

from markupsafe import Markup

from guardkeel.dossier.kinds import Model
from guardkeel.dossier.state import State
from guardkeel.report.plots import label, tag

WIDE, TALL, GAP, ROW = 190, 46, 70, 66


def lineage(state: State) -> Markup:
    """Boxes for models, registered or only named as a parent; arrows from parents, with how each was made."""
    models = {m.digest: m for m in state.each(Model)}
    parents: dict[str, list[tuple[str, str]]] = {
        d: [(p.digest, p.relation) for p in m.parents] for d, m in models.items()
    }
    for found in list(parents.values()):
        for parent, _ in found:
            parents.setdefault(parent, [])
    depth = _depths(parents)
    columns: dict[int, list[str]] = {}
    for digest in parents:
        columns.setdefault(depth[digest], []).append(digest)
    place = {d: (8 + c * (WIDE + GAP), 10 + i * ROW) for c, ds in columns.items() for i, d in enumerate(ds)}
    width = 16 + (max(columns) + 1) * WIDE + max(columns) * GAP
    height = 14 + max(len(c) for c in columns.values()) * ROW
    marks = [_arrow(place[p], place[d], relation) for d, found in parents.items() for p, relation in found]
    used = {d.model for d in state.deployed().values()}
    marks += [_box(place[d], models.get(d), d, used) for d in parents]
    names = "; ".join(f"{models[d].id} from {len(p)}" for d, p in parents.items() if d in models)
    return tag(
        "svg",
        tag("title", f"Lineage of models. Models and their parents: {names}"),
        *marks,
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        class_="plot",
    )


def _depths(parents: dict[str, list[tuple[str, str]]]) -> dict[str, int]:
    """Steps from a model without parents; a loop, which digests cannot make, ends where it closes."""
    found: dict[str, int] = {}

    def of(digest: str, seen: frozenset[str]) -> int:
        if digest not in found:
            above = [of(p, seen | {digest}) for p, _ in parents[digest] if p not in seen]
            found[digest] = 1 + max(above) if above else 0
        return found[digest]

    for digest in parents:
        of(digest, frozenset({digest}))
    return found


def _arrow(start: tuple[float, float], end: tuple[float, float], relation: str) -> Markup:
    x1, y1, x2, y2 = start[0] + WIDE, start[1] + TALL / 2, end[0], end[1] + TALL / 2
    middle = (x1 + x2) / 2
    curve = f"M{x1:g} {y1:g}C{middle:g} {y1:g} {middle:g} {y2:g} {x2 - 6:g} {y2:g}"
    head = f"M{x2 - 8:g} {y2 - 4:g}L{x2:g} {y2:g}L{x2 - 8:g} {y2 + 4:g}"
    return Markup("").join(
        (
            tag("path", d=curve, class_="bond"),
            tag("path", d=head, class_="bond"),
            label(relation, middle, (y1 + y2) / 2 - 5, class_="bonded"),
        )
    )


def _box(at: tuple[float, float], model: Model | None, digest: str, used: set[str]) -> Markup:
    name = model.id if model else "not registered"
    short = name if len(name) <= 24 else name[:23] + "…"
    kind = "box unknown" if model is None else "box used" if model.id in used else "box"
    word = f"{digest[:12]}…" + (" in use" if model and model.id in used else "")
    return Markup("").join(
        (
            tag(
                "rect",
                tag("title", f"{name}, {digest}"),
                x=at[0],
                y=at[1],
                width=WIDE,
                height=TALL,
                rx=8,
                class_=kind,
            ),
            label(short, at[0] + 12, at[1] + 19, "start", "strong"),
            label(word, at[0] + 12, at[1] + 36, "start"),
        )
    )
