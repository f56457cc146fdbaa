"""What the data card says of adjudication."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def section(
    found: Mapping[str, Any], table: Callable[..., str], shown: Callable[[Mapping[str, Any]], str]
) -> str:
    """Markdown of the step's results, "" where there was no such step.

    Args:
        found: AdjudicationResults as JSON.
        table: the card's way to write a table: title, head, rows.
        shown: its way to write an estimate.
    """
    if not found:
        return ""
    sizes = found["population"]
    parts = [
        "## Decisions by people\n\n"
        f"People decided {found['decided']:,} of {found['queued']:,} items that were put before them: of "
        f"{sizes['contested']:,} on which jurors disagree or are unsure, and of {sizes['agreed']:,} on which they "
        f"agree and of which each was drawn with probability {found['audit']:g}. "
        + (f"Each was judged by {found['people']} people alone, and one more where they differ.\n"
           if found["people"] > 1 else "Each was judged by one person.\n"),
        table("", ["why people were asked", "items"], found["reasons"].items()),
        table(
            "",
            ["person", "safe", "needs caution", "unsafe", "cannot tell", "seconds a label (median)"],
            [
                [p["name"], *(p["answers"].get(c, 0) for c in ("safe", "caution", "unsafe", "unclear")),
                 "–" if p["seconds"] is None else p["seconds"]]
                for p in found["annotators"]
            ],
        ),
    ]  # fmt: skip
    between = found["agreement"]
    if between:
        parts.append(f"Krippendorff's α between people: {shown(between['alpha'])}.\n")
        pairs = [[p["first"], p["second"], shown(p["kappa"]), shown(p["same"])] for p in between["pairs"]]
        parts.append(table("Pairs of people.\n", ["", "", "Cohen's κ", "same label"], pairs))
    rows = [
        [s["judge"], s["source"], *(shown(s[k]) for k in ("sensitivity", "specificity", "abstained"))]
        for s in found["skills"]
    ]
    head = ["juror", "items", "sensitivity", "specificity", "abstained"]
    said = "Jurors against what people decided. Over all items, each decided one stands for those like it.\n"
    parts.append(table(said, head, rows))
    parts += [f"{note}\n" for note in found["notes"]]
    return "\n".join(filter(None, parts))
