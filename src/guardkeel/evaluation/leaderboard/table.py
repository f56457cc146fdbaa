"""From verdicts to the table: cells, means, ranks and differences. Numbers only; no model, no texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

from guardkeel.conversation import SIDES, Side
from guardkeel.evaluation.items import ItemMeta
from guardkeel.evaluation.leaderboard.agreement import category_agreement
from guardkeel.evaluation.leaderboard.cells import cell, estimate_of, own_cell, slice_rows
from guardkeel.evaluation.leaderboard.differences import differences
from guardkeel.evaluation.leaderboard.judged import Failed, Items, Judged, reasons, scores_of
from guardkeel.evaluation.leaderboard.macro import macro
from guardkeel.evaluation.leaderboard.results import (
    ALL,
    Cell,
    Column,
    GuardRow,
    LeaderboardResults,
    Macro,
    Metric,
)
from guardkeel.evaluation.leaderboard.speed import speed
from guardkeel.guards.base import Verdict
from guardkeel.results import SuiteInfo

METRICS: tuple[Metric, ...] = get_args(Metric)
ONE_SIDED: tuple[Metric, ...] = ("recall", "fpr")
Watch = Callable[[str, int, int | None], None]


def tabulate(
    guards: Sequence[Judged | Failed],
    items: Items,
    suites: Sequence[SuiteInfo],
    *,
    against: str | None = None,
    rank_by: Metric = "f1_strict",
    fixed_fpr: float = 0.05,
    min_items: int = 20,
    draws: int = 2000,
    seed: int = 0,
    watch: Watch = lambda what, done, total: None,
) -> LeaderboardResults:
    """The results of guards on items, in order of rank.

    `against` names one of the guards; where it failed, and where None is given, the first in rank is taken.
    """
    columns = columns_of(items)
    cells: dict[int, list[Cell]] = {}
    for k, guard in enumerate(guards):
        watch("statistics", k, len(guards))
        if isinstance(guard, Judged):
            cells[k] = _cells(guard, items, columns, fixed_fpr, seed)
    dead = {k: reason for k, g in enumerate(guards) if isinstance(g, Judged) and (reason := _dead(g, items))}
    alive = [k for k in cells if k not in dead]
    compared = [k for k in alive if _complete(guards[k], items)]
    averaged, missing = _averaged([cells[k] for k in compared], [guards[k] for k in compared], columns)
    means = {k: _macros(cells[k], averaged, columns) for k in compared}
    ranked_by, ranked_on = _ranked_by(rank_by, averaged, [cells[k][0] for k in compared])
    order = _order(guards, compared, cells, means, ranked_by, ranked_on)
    rest = [k for k in range(len(guards)) if k not in order]
    rest.sort(key=lambda k: (k not in alive, k))
    asked = [k for k in (*order, *rest) if k in alive and _pairable(guards[k], items)]
    chosen = next((k for k in asked if _name(guards[k]) == against), asked[0] if asked else None)
    live = [g for k in asked if isinstance(g := guards[k], Judged)]
    found = LeaderboardResults(
        suites=list(suites),
        columns=[*columns, *_own_columns(guards)],
        guards=[
            _row(
                guards[k],
                cells.get(k, []),
                means.get(k, []),
                items,
                min_items,
                seed,
                reason=dead.get(k, ""),
                compared=k in compared,
                rank=order.index(k) + 1 if k in order else None,
            )
            for k in (*order, *rest)
        ],
        fixed_fpr=fixed_fpr,
        min_items=min_items,
        against="" if chosen is None else _name(guards[chosen]),
        ranked_by=ranked_by,
        ranked_on=ranked_on,
        not_averaged=missing,
        notes=_notes(guards, columns, against, chosen, dead),
    )
    if len(live) > 1 and isinstance(other := guards[chosen or 0], Judged):
        found.differences = differences(
            live,
            other,
            items,
            columns,
            averaged["f1_strict"],
            draws=draws,
            seed=seed,
        )
    watch("statistics", len(guards), len(guards))
    return found


def columns_of(items: Items) -> list[Column]:
    """The sides of the suites that have test items, suites in the order of the items."""
    found = []
    for suite in dict.fromkeys(m.suite for m in items.metas):
        present = [side for side in SIDES if (items.of(suite, side) & items.test).any()]
        for side in present:
            here = items.of(suite, side)
            n, unsafe = int((here & items.test).sum()), int((here & items.test & items.unsafe).sum())
            found.append(
                _column(
                    suite if len(present) == 1 else f"{suite} {side}",
                    suite,
                    side,
                    n,
                    unsafe,
                    n_calibrate=int((here & items.calibrate).sum()),
                )
            )
    return found


def _column(
    name: str, suite: str, side: Side, n: int, unsafe: int, *, n_calibrate: int = 0, paired: bool = True
) -> Column:
    return Column(
        name=name,
        suite=suite,
        side=side,
        classes="both" if 0 < unsafe < n else "unsafe" if unsafe else "safe",
        n=n,
        n_unsafe=unsafe,
        n_safe=n - unsafe,
        n_calibrate=n_calibrate,
        paired=paired,
    )


def _own_columns(guards: Sequence[Judged | Failed]) -> list[Column]:
    """Columns of imported files that stand alone; two files of one suite share the column of the first."""
    found: dict[tuple[str, str], Column] = {}
    for guard in guards:
        for metas, _ in _parts(guard):
            suite, side = metas[0].suite, metas[0].side
            unsafe = sum(m.unsafe for m in metas)
            made = _column(f"{suite} {side}", suite, side, len(metas), unsafe, paired=False)
            found.setdefault((suite, side), made)
    return list(found.values())


def _complete(guard: Judged | Failed, items: Items) -> bool:
    """Whether it judged every test item here."""
    return isinstance(guard, Judged) and bool(guard.judged[items.test].all())


def _pairable(guard: Judged | Failed, items: Items) -> bool:
    """Whether it judged any of the test items here."""
    return isinstance(guard, Judged) and bool((guard.judged & items.test).any())


def _parts(guard: Judged | Failed) -> Iterator[tuple[list[ItemMeta], list[Verdict]]]:
    """The items and verdicts of imported suites that stand alone, by suite and side."""
    found: dict[tuple[str, str], tuple[list[ItemMeta], list[Verdict]]] = {}
    for meta, verdict in guard.own if isinstance(guard, Judged) else ():
        metas, verdicts = found.setdefault((meta.suite, meta.side), ([], []))
        metas.append(meta)
        verdicts.append(verdict)
    yield from found.values()


def _cells(guard: Judged, items: Items, columns: Sequence[Column], target: float, seed: int) -> list[Cell]:
    """All suites together, side by side, column by column, and what stands alone; none where it judged nothing."""
    sides = [side for side in SIDES if any(c.side == side for c in columns)]
    places = [(ALL, ALL), *((ALL, side) for side in sides if len(sides) > 1)]
    places += [(c.suite, c.side) for c in columns]
    there = guard.judged & items.test
    found = [
        cell(guard, items, suite, side, target, seed)
        for suite, side in places
        if (there & items.of(suite, side)).any()
    ]
    return found + [
        own_cell(metas, scores_of(verdicts), guard.info.threshold, target, seed)
        for metas, verdicts in _parts(guard)
    ]


def _dead(guard: Judged, items: Items) -> str:
    """Why a guard that judged items has no score at all, or ''."""
    verdicts = [v for _, v in guard.own] or [
        v for v, t in zip(guard.verdicts, items.test, strict=True) if t and v
    ]
    if any(v.unsafe is not None for v in verdicts):
        return ""
    reason, n = next(iter(reasons(verdicts).items()), ("it was asked nothing", 0))
    return f"no item was scored: {reason} ({n:,} of {len(verdicts):,})"


def _at(cells: Sequence[Cell], column: Column) -> Cell:
    return next(c for c in cells if (c.suite, c.side) == (column.suite, column.side))


def _averaged(
    cells: Sequence[Sequence[Cell]], guards: Sequence[Judged | Failed], columns: Sequence[Column]
) -> tuple[dict[Metric, list[str]], dict[str, dict[str, str]]]:
    """For each metric the columns where all guards have it, and those where one has not though another has."""
    averaged: dict[Metric, list[str]] = {m: [] for m in METRICS}
    missing: dict[str, dict[str, str]] = {}
    for metric in METRICS:
        for column in columns:
            without = [
                _name(g)
                for g, mine in zip(guards, cells, strict=True)
                if estimate_of(_at(mine, column), metric).value is None
            ]
            if not without and guards:
                averaged[metric].append(column.name)
            elif len(without) < len(guards):
                missing.setdefault(metric, {})[column.name] = without[0]
    return averaged, missing


def _macros(
    cells: Sequence[Cell], averaged: dict[Metric, list[str]], columns: Sequence[Column]
) -> list[Macro]:
    found = []
    sides = [side for side in SIDES if any(c.side == side for c in columns)]
    for metric, names in averaged.items():
        for side in [ALL, *(sides if len(sides) > 1 else [])]:
            mine = [c for c in columns if c.name in names and side in (ALL, c.side)]
            if mine:
                estimate = macro([estimate_of(_at(cells, c), metric) for c in mine])
                found.append(
                    Macro(metric=metric, side=side, columns=[c.name for c in mine], estimate=estimate)
                )
    return found


def _ranked_by(
    rank_by: Metric, averaged: dict[Metric, list[str]], pooled: Sequence[Cell]
) -> tuple[Metric | None, Literal["means", "pooled"]]:
    """What gives the rank: the mean that was asked for, F1 where it has none, that of all items where no suite has it.

    Recall alone ranks guards only where nothing is safe (else a guard that flags everything would lead), FPR alone
    only where nothing is unsafe.
    """
    first: tuple[Metric, ...] = (rank_by, "f1_strict")
    for metric in first:
        if averaged[metric]:
            return metric, "means"
    if pooled and all(c.f1_strict.value is not None for c in pooled):
        return "f1_strict", "pooled"
    return next((m for m in ONE_SIDED if averaged[m]), None), "means"


def _order(
    guards: Sequence[Judged | Failed],
    compared: Sequence[int],
    cells: dict[int, list[Cell]],
    means: dict[int, list[Macro]],
    by: Metric | None,
    on: Literal["means", "pooled"],
) -> list[int]:
    """The compared guards, best first; equal ones by name."""
    if by is None:
        return []

    def value(k: int) -> float:
        if on == "pooled":
            found = cells[k][0].f1_strict
        else:
            found = next(m.estimate for m in means[k] if (m.metric, m.side) == (by, ALL))
        return (1 if by == "fpr" else -1) * (found.value or 0.0)

    return sorted(compared, key=lambda k: (value(k), _name(guards[k])))


def _name(guard: Judged | Failed) -> str:
    return guard.info.name if isinstance(guard, Judged) else guard.name


def _row(
    guard: Judged | Failed,
    cells: list[Cell],
    means: list[Macro],
    items: Items,
    least: int,
    seed: int,
    *,
    reason: str,
    compared: bool,
    rank: int | None,
) -> GuardRow:
    if isinstance(guard, Failed):
        return GuardRow(
            name=guard.name, reference=guard.reference, status="failed", reason=guard.reason, compared=False
        )
    info, facts = guard.info, guard.info.facts
    return GuardRow(
        name=info.name,
        reference=info.reference,
        origin=info.origin,
        status="failed" if reason else "scored",
        reason=reason,
        compared=compared,
        rank=rank,
        family=info.family,
        threshold=info.threshold,
        policy=info.policy,
        digest=info.digest,
        parameters=int(facts.get("parameters") or 0),
        dtype=str(facts.get("dtype") or ""),
        device=str(facts.get("device") or ""),
        cells=cells,
        macro=means,
        slices=[] if reason else slice_rows(guard, items, least, seed),
        categories=None if reason else category_agreement(guard, items, least),
        speed=speed(guard.timing, seed) if guard.timing else None,
        unscored_reasons=reasons([*guard.verdicts, *(v for _, v in guard.own)]),
        shortened=sum(v is not None and v.dropped > 0 for v in guard.verdicts),
        notes=list(guard.notes),
    )


def _notes(
    guards: Sequence[Judged | Failed],
    columns: Sequence[Column],
    against: str | None,
    chosen: int | None,
    dead: dict[int, str],
) -> list[str]:
    notes = []
    if against is not None and (chosen is None or _name(guards[chosen]) != against):
        notes.append(f"{against} gave no verdicts, so the guards are compared with the first in rank")
    for wanted, words in (
        ("unsafe", "unsafe items only: recall, no F1, no FPR"),
        ("safe", "safe items only: FPR alone"),
    ):
        named = [c.name for c in columns if c.classes == wanted]
        if named:
            notes.append(f"{', '.join(named)}: {words}")
    failed = sum(isinstance(g, Failed) for g in guards) + len(dead)
    if failed:
        notes.append(f"{failed} of {len(guards)} guards gave no verdicts; nothing is said of them")
    return notes
