"""The tables of docs/repair.md, from finished sweeps.

python benchmarks/repair/table.py --out runs/repair
"""

from __future__ import annotations

import argparse
from pathlib import Path

from run import JOBS

from guardkeel.fusion.sweep.reading import read_sweep
from guardkeel.fusion.sweep.results import Confirmation, Point, Standing, SweepResults
from guardkeel.records import Estimate


def main(args: argparse.Namespace) -> None:
    """Print two tables for each job that is done."""
    for job in JOBS:
        if (args.out / job / "sweep" / "run.json").is_file():
            _, results = read_sweep(args.out / job / "sweep")
            print(f"### {job}\n\n{methods(results)}\n\n{confirmed(results)}\n")


def methods(results: SweepResults) -> str:
    """What each method came to on calibrate items, reference and damaged guards first."""
    ends = [p for p in results.points if p.control in ("reference", "candidate")]
    rows = [
        [p.name, "", percent(p.recall_matched.value), "", percent(p.gain.value), percent(p.fpr.value)]
        for p in ends
    ]
    rows += [standing(s, results) for s in results.standings]
    return table(["guard", "rule", "recall", "− interpolation", "gain kept", "FPR as shipped"], rows)


def standing(s: Standing, results: SweepResults) -> list[str]:
    """One method at its best."""
    point = results.point(s.point)
    assert point is not None
    return [
        label(s, point),
        "satisfied" if s.satisfied else "missed",
        percent(s.recall),
        points(s.against),
        percent(s.gain),
        percent(s.fpr),
    ]


def label(s: Standing, point: Point) -> str:
    """The point's name without its seed, and how many seeds stand behind it."""
    name = point.name.partition(" seed=")[0]
    return f"{name} ({s.seeds} seeds)" if s.seeds > 1 else name


def confirmed(results: SweepResults) -> str:
    """The choice on test items, suite by suite."""
    found = results.confirmation
    if found is None:
        return f"Nothing was confirmed: {results.choice.reason}."
    chosen = results.point(results.choice.chosen)
    assert chosen is not None
    rows = [
        [
            s.suite.replace("*", "all"),
            str(s.n),
            *map(percent, (s.reference, *s.damaged.values(), s.repaired)),
            points(s.change),
            s.outcome or "",
        ]
        for s in found.suites
        if s.n
    ]
    head = ["suite", "unsafe items", "reference", *(f"{d.name}, damaged" for d in found.damaged)]
    return (
        f"Confirmed on test items: **{chosen.name}**, {verdict(found)}.\n\n"
        f"{table([*head, 'repaired', 'repaired − reference', 'verdict'], rows)}"
    )


def verdict(found: Confirmation) -> str:
    """The answer over all suites, and the gate's."""
    said = f"{found.verdict} over all suites at a margin of {100 * found.margin:g} points"
    return f"{said}; gate: {found.repaired.decision}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def percent(value: float | None) -> str:
    """0.934 → 93%."""
    return "–" if value is None else f"{100 * value:.0f}%".replace("-", "−")


def points(e: Estimate) -> str:
    """A difference with its interval, in points."""
    if e.value is None or e.low is None or e.high is None:
        return ""
    return f"{100 * e.value:+.1f} ({100 * e.low:+.1f} to {100 * e.high:+.1f})".replace("-", "−")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/repair"))
    main(parser.parse_args())
