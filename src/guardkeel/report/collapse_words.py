"""A collapse table in words: the headline, contrasts as answers, and the tables of the documentation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from guardkeel.report import words
from guardkeel.tuning.collapse.contrasts import AGAINST_PLAIN
from guardkeel.tuning.collapse.figures import (
    FALL,
    PLAIN,
    RECALIBRATED,
    REFERENCE,
    CollapseTable,
    Contrast,
    Figure,
    Metric,
    Outcome,
    Prediction,
    Row,
)

ALPHA = 0.05
ANSWERS = {
    "yes": "met",
    "no": "not met",
    "insufficient evidence": "undecided",
    "plain did not fall": "not tested",
}
SIGNS = {"yes": "✓", "no": "✗", "insufficient evidence": "?", "plain did not fall": "–"}
CHANGES: dict[Metric, str] = {
    "recalibrated": "recall at the reference’s FPR",
    "shipped": "recall as shipped",
    "auroc": "AUROC",
}
MARKS: dict[Outcome, str] = {
    "non-inferior": "✓",
    "inferior": "✗",
    "insufficient evidence": "?",
    "not measured": "",
}


@dataclass(frozen=True, slots=True)
class Headline:
    """What a reader who stops after three lines must know; `outcome` is pass, fail or hold."""

    outcome: str
    badge: str
    lead: str
    sentence: str
    why: str


def headline(table: CollapseTable) -> Headline:
    """The first lines of the report."""
    met = [o.arm for o in table.overall if o.target == "yes" and o.arm not in (PLAIN, RECALIBRATED)]
    free = any(o.arm == RECALIBRATED and o.target == "yes" for o in table.overall)
    tested = any(
        r.verdict and r.verdict.plain_fell == "yes" for r in table.rows if r.arm == PLAIN and not r.variant
    )
    undecided = [o.arm for o in table.overall if o.target == "insufficient evidence"]
    if free:
        outcome, badge, lead = (
            "pass",
            "MET",
            "A new threshold is enough: plain fine-tuning keeps its ranking.",
        )
    elif met:
        verb = "keeps" if len(met) == 1 else "keep"
        outcome, badge = "pass", "MET"
        lead = f"{listed(met)} {verb} the guard safe, and the task gain."
    elif not tested:
        outcome, badge = "hold", "OPEN"
        lead = "Plain fine-tuning was not seen to fall, so no arm was put to the test."
    elif undecided:
        outcome, badge, lead = "hold", "OPEN", "No arm is shown to meet the target, and some are undecided."
    else:
        outcome, badge, lead = "fail", "NOT MET", "No arm keeps both the guard’s safety and the task gain."
    parts = [
        words.plural(table.cells, "fine-tune"),
        words.plural(len(table.scenarios), "scenario"),
        f"{words.plural(len(table.suites), 'suite')} with {words.plural(sum(table.suites.values()), 'test item')}",
    ]
    missing = (
        words.plural(len(table.missing), "cell has", "cells have") + " no result" if table.missing else ""
    )
    return Headline(
        outcome, badge, lead, _plain(table), ", ".join(parts) + (f"; {missing}." if missing else ".")
    )


def _plain(table: CollapseTable) -> str:
    """What plain fine-tuning did, in a sentence."""
    rows = [r for r in table.rows if r.arm == PLAIN and not r.variant]
    said = []
    for metric, where in (
        ("change_shipped", "as shipped"),
        ("change_recalibrated", "at the reference’s FPR"),
    ):
        known = [(v, r.scenario) for r in rows if (v := getattr(r.pooled, metric).value) is not None]
        if known:
            value, scenario = min(known)
            said.append(f"{max(0.0, -100 * value):.1f} points of recall {where} ({scenario})")
    if not said:
        return "Plain fine-tuning was not measured."
    fell = sum(r.verdict is not None and r.verdict.plain_fell == "yes" for r in rows)
    many = f"{fell} of {words.plural(len(rows), 'scenario')}"
    return f"Plain fine-tuning lost up to {' and '.join(said)}; {100 * FALL:.0f} points or more as shipped in {many}."


def listed(names: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def answer(c: Contrast) -> str:
    """A contrast in a word or two. What Holm's correction leaves open is not shown, never 'no'."""
    value = c.difference.value
    if value is None or c.p_holm is None:
        return "not measured"
    if c.difference.note.startswith("the same"):
        return "no: identical"
    if c.p_holm > ALPHA:
        return "not shown"
    return "yes" if value > 0 else "no, the reverse"


def head(metric: Metric) -> str:
    """The head of a column of changes."""
    name = CHANGES[metric]
    return name[:1].upper() + name[1:]


def amount(c: Contrast) -> str:
    """'+1.7 points' or '+0.004'."""
    return words.change(c.difference.value) if c.metric == "auroc" else words.points(c.difference.value)


def bounds(f: Figure, form: Callable[[float | None], str]) -> str:
    """'81.6% to 92.6%', or nothing."""
    return "" if f.low is None or f.high is None else f"{form(f.low)} to {form(f.high)}"


def spread(f: Figure, form: Callable[[float | None], str]) -> str:
    """The range over seeds, where there are several that differ."""
    if f.least is None or f.most is None or form(f.least) == form(f.most):
        return ""
    return f"{form(f.least)} – {form(f.most)}"


def share(value: float | None) -> str:
    """0.966 → '97%', −0.2 → '−20%': a share that may lie outside 0 and 1."""
    return words.NOTHING if value is None else f"{100 * value:.0f}%".replace("-", "−")


def times(value: float | None) -> str:
    """1.52 → '1.52×'."""
    return words.NOTHING if value is None else f"{value:.2f}×"


def rho(value: float | None) -> str:
    """−0.87."""
    return words.decimal(value, 2)


def ranked(found: Iterable[Prediction]) -> list[tuple[Prediction, ...]]:
    """Predictions by measure, the strongest for recall at the reference's FPR first, baselines last."""
    by_measure: dict[str, list[Prediction]] = {}
    for p in found:
        by_measure.setdefault(p.measure, []).append(p)
    groups = [tuple(g) for g in by_measure.values()]
    return sorted(groups, key=lambda g: (g[0].baseline, -abs(g[0].rho.value or 0.0), g[0].measure))


def foresight(table: CollapseTable) -> str:
    """Which measure foretells recall at the reference's FPR best, in a sentence."""
    known = [p for p in table.prediction if p.outcome == "recalibrated" and p.rho.value is not None]
    inner = max((p for p in known if not p.baseline), key=lambda p: abs(p.rho.value or 0), default=None)
    outer = max((p for p in known if p.baseline), key=lambda p: abs(p.rho.value or 0), default=None)
    if inner is None:
        return "No geometry measure could be set against behaviour."
    said = f"Of the geometry measures, “{inner.measure}” goes with recall at the reference’s FPR best: {_rho(inner)}."
    return said if outer is None else f"{said} The best baseline, “{outer.measure}”: {_rho(outer)}."


def _rho(p: Prediction) -> str:
    ends = bounds(p.rho, rho)
    inside = "" if p.within is None else f", {rho(p.within)} inside scenarios"
    return (
        f"ρ {rho(p.rho.value)}"
        + (f" ({ends})" if ends else "")
        + f" over {words.plural(p.rho.n, 'cell')}{inside}"
    )


def missing(table: CollapseTable) -> list[str]:
    """Cells without a result, one line for each reason, scenario and variant."""
    groups: dict[tuple[str, str, str], dict[str, list[int]]] = {}
    for m in table.missing:
        groups.setdefault((m.why, m.scenario, m.variant), {}).setdefault(m.arm, []).append(m.seed)
    return [
        f"{scenario}{f' ({variant})' if variant else ''}: "
        + ", ".join(
            f"{arm} (seed{'s' if s[1:] else ''} {', '.join(map(str, sorted(s)))})" for arm, s in arms.items()
        )
        + (f": {why}" if why else "")
        for (why, scenario, variant), arms in groups.items()
    ]


def markdown(table: CollapseTable) -> dict[str, str]:
    """The table as Markdown, by part of docs/collapse.md: overall, table, contrasts, prediction, variants."""
    return {
        "overall": _overall(table),
        "table": "\n".join(_scenario(table, s) for s in table.scenarios),
        "contrasts": _contrasts(table),
        "prediction": _prediction(table),
        "variants": _variants(table),
    }


def _overall(table: CollapseTable) -> str:
    shown = headline(table)
    rows = [
        [
            f"`{o.arm}`",
            ANSWERS[o.target],
            f"{o.scenarios} of {o.scenarios + o.missing}",
            _with(o.worst, words.points) + (f" ({o.worst_where})" if o.worst_where else ""),
            share(o.kept.value),
        ]
        for o in table.overall
    ]
    head = [
        "arm",
        "target",
        "scenarios",
        "worst change of recall at the reference’s FPR, points",
        "least task gain kept",
    ]
    return _text(f"{shown.lead} {shown.sentence} {shown.why}") + "\n\n" + _table(head, rows)


def _scenario(table: CollapseTable, scenario: str) -> str:
    head = [
        "arm",
        "seeds",
        "recall at the reference’s FPR",
        "worst suite, points",
        "recall as shipped",
        "FPR as shipped",
    ]
    head += ["AUROC", "ECE", "unscored", "task gain kept", "accuracy", "step time", "target"]
    rows = [_line(r) for r in table.rows if r.scenario == scenario and not r.variant]
    return f"**{_text(scenario)}**\n\n" + _table(head, rows)


def _line(r: Row) -> list[str]:
    p, v = r.pooled, r.verdict
    worst = "" if v is None or v.worst.value is None else f"{_with(v.worst, words.points)} ({v.worst_suite})"
    return [
        r.arm if r.arm in (REFERENCE, RECALIBRATED) else f"`{r.arm}`",
        str(len(r.seeds) or ""),
        _with(p.recalibrated, words.percent),
        worst,
        _with(p.shipped, words.percent),
        words.percent(p.fpr.value),
        words.decimal(p.auroc.value),
        words.decimal(r.ece.value),
        words.percent(p.unscored.value),
        share(r.task.kept.value) + (f" ({spread(r.task.kept, share)})" if spread(r.task.kept, share) else ""),
        words.percent(r.task.accuracy.value),
        times(r.time_ratio.value),
        "" if v is None else ANSWERS[v.target],
    ]


def _contrasts(table: CollapseTable) -> str:
    rows: dict[tuple[str, str, str], dict[Metric, str]] = {}
    for c in table.contrasts:
        if c.scenario == words.POOLED:
            ends = bounds(c.difference, words.change if c.metric == "auroc" else words.points)
            text = f"{answer(c)}: {amount(c)}" + (f" ({ends})" if ends else "")
            text += f", p {words.probability(c.p_holm)}, same sign in {c.same} of {c.of}"
            rows.setdefault((c.question, c.first, c.second), {})[c.metric] = text
    head = [
        "question",
        "arms",
        *(f"{name}{'' if m == 'auroc' else ', points'}" for m, name in CHANGES.items()),
    ]
    lines = [
        [question, f"`{a}` − `{b}`", *(found.get(m, "") for m in CHANGES)]
        for (question, a, b), found in rows.items()
    ]
    asked = [line for line in lines if line[0] != AGAINST_PLAIN]
    return _table(head, asked + [line for line in lines if line[0] == AGAINST_PLAIN])


def _prediction(table: CollapseTable) -> str:
    head = [
        "measure",
        *(f"{name}: ρ, over cells, over clusters" for name in CHANGES.values()),
        "within scenarios",
        "cells",
    ]
    rows = []
    for group in ranked(table.prediction):
        cells = []
        for p in group:
            wide = bounds(Figure(low=p.cluster_low, high=p.cluster_high), rho)
            ends = "; ".join(e for e in (bounds(p.rho, rho), wide) if e)
            cells.append(rho(p.rho.value) + (f" ({ends})" if ends else ""))
        name = f"{group[0].measure} (baseline)" if group[0].baseline else group[0].measure
        rows.append([name, *cells, " / ".join(rho(p.within) for p in group), str(group[0].rho.n)])
    return _text(foresight(table)) + "\n\n" + _table(head, rows)


def _variants(table: CollapseTable) -> str:
    rows = [
        [
            *(r.scenario, r.variant, f"`{r.arm}`", f"{r.learning_rate or 0:g}", str(r.steps or 0)),
            _with(r.pooled.recalibrated, words.percent),
            _with(r.pooled.shipped, words.percent),
            share(r.task.kept.value),
            ANSWERS[r.verdict.target] if r.verdict else "",
        ]
        for r in table.rows
        if r.variant and r.arm not in (REFERENCE, RECALIBRATED)
    ]
    if not rows:
        return "No variant has been measured.\n"
    head = [
        "scenario",
        "variant",
        "arm",
        "learning rate",
        "steps",
        "recall at the reference’s FPR",
        "recall as shipped",
    ]
    return _table([*head, "task gain kept", "target"], rows)


def _with(f: Figure, form: Callable[[float | None], str]) -> str:
    ends = bounds(f, form)
    return form(f.value) + (f" ({ends})" if ends else "")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(_text(c) for c in row) + " |\n" for row in lines)


def _text(cell: str) -> str:
    """A cell that cannot end its row or become markup."""
    return " ".join(cell.split()).replace("|", "\\|").replace("<", "&lt;")
