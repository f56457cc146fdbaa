"""The data card: README.md with the front matter that hubs and `datasets` read, and what its users must know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from guardkeel.conversation import SIDES
from guardkeel.curation.adjudication import card as adjudication
from guardkeel.curation.config import CurateConfig
from guardkeel.curation.rows import Row
from guardkeel.evaluation.suites.splits import SPLITS

LICENCES = {
    "CC BY 4.0": "cc-by-4.0",
    "CC BY-NC 4.0": "cc-by-nc-4.0",
    "CC BY-SA 4.0": "cc-by-sa-4.0",
    "CC0 1.0": "cc0-1.0",
    "MIT": "mit",
    "Apache-2.0": "apache-2.0",
    "ODC-BY 1.0": "odc-by",
}
"""Our names of licences → those of hubs; a set of several, or of another, is "other"."""

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass
class Totals:
    """What is counted while rows are written."""

    rows: Counter[str] = field(default_factory=Counter)
    labels: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    categories: Counter[str] = field(default_factory=Counter)
    sources: Counter[tuple[str, str]] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    redactions: Counter[str] = field(default_factory=Counter)
    absorbed: int = 0
    withheld: int = 0

    def add(self, row: Row) -> None:
        """Count a row."""
        self.rows[row.split or ""] += 1
        for side in SIDES:
            given = row.labels.get(side)
            if given is not None:
                self.labels[side, given.source, row.split or "", given.label or "unknown"] += 1
        self.categories.update(row.categories)
        self.sources[row.source, row.licence] += 1
        self.languages[row.language] += 1
        self.redactions.update(row.redactions)
        self.absorbed += len(row.absorbed)
        self.withheld += any("not ours to pass on" in said for said in row.history)

    @property
    def licences(self) -> list[str]:
        """Of all rows; "" where none is known."""
        return sorted({licence for _, licence in self.sources})


def card(
    config: CurateConfig,
    totals: Totals,
    files: Mapping[str, Sequence[str]],
    steps: Sequence[Mapping[str, Any]],
) -> str:
    """The text of README.md.

    Args:
        config: the pipeline.
        totals: of the rows that were written.
        files: the data files of each split, as paths from the card's folder.
        steps: what each step left behind (step.json), in order.
    """
    parts = [_front(config, totals, files), f"# {config.export.title or config.name}\n"]
    if config.export.description:
        parts.append(config.export.description.strip() + "\n")
    parts += [
        _labels(totals),
        _table("## Categories\n", ["category", "rows"], [[c, n] for c, n in totals.categories.most_common()]),
        _sources(config, totals, steps),
        _jury(steps),
        adjudication.section(_results(steps, "adjudicate"), _table, _shown),
        _pipeline(totals, steps),
        _limits(config, totals, steps),
    ]
    return "\n".join(part for part in parts if part)


def _front(config: CurateConfig, totals: Totals, files: Mapping[str, Sequence[str]]) -> str:
    import yaml

    rows = sum(totals.rows.values())
    licence = config.export.licence
    names = [licence] if licence else totals.licences
    known = LICENCES.get(names[0]) if len(names) == 1 else None
    front: dict[str, Any] = {
        "pretty_name": config.export.title or config.name,
        "license": known or "other",
        "task_categories": ["text-classification"],
        "tags": ["safety", "content moderation", "guard model", "guardkeel"],
        "size_categories": [next((name for most, name in _SIZES if rows < most), "1M<n<10M")],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": s, "path": list(files[s])} for s in SPLITS if files.get(s)],
            }
        ],
    }
    if not known:
        front["license_name"] = "several" if len(names) > 1 else "see-sources"
    languages = sorted(
        {code for n in totals.languages if n for code in [n.replace("_", "-").split("-")[0].lower()]}
    )
    if languages:
        front["language"] = languages
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n"


def _labels(totals: Totals) -> str:
    keys = sorted(
        {(side, source) for side, source, _, _ in totals.labels}, key=lambda k: (SIDES.index(k[0]), k[1])
    )
    rows = []
    for side, source in keys:
        cells = [
            " / ".join(
                str(totals.labels[side, source, split, label]) for label in ("unsafe", "safe", "unknown")
            )
            for split in SPLITS
        ]
        rows.append([side, source, *cells])
    sizes = ", ".join(f"{totals.rows[s]:,} {s}" for s in SPLITS if totals.rows[s])
    text = (
        f"## Labels\n\n{sum(totals.rows.values()):,} rows: {sizes}. Each side of a conversation has its own label, "
        "and each label says who it is from; a side without one was judged by nobody, one that is unknown was judged "
        "without a result. Neither is safe. Numbers are unsafe / safe / unknown.\n"
    )
    return text + "\n" + _table("", ["side", "label by", *SPLITS], rows)


def _sources(config: CurateConfig, totals: Totals, steps: Sequence[Mapping[str, Any]]) -> str:
    said = _results(steps, "source").get("sources", {})
    rows = []
    for (name, licence), n in sorted(totals.sources.items()):
        origin = said.get(name, {}).get("origin", "") or _reads(said.get(name, {}).get("reads", ""))
        rows.append([name, n, licence or "not known", origin])
    return _table("## Sources and licences\n", ["source", "rows", "licence", "origin"], rows)


def _reads(given: str | Sequence[str]) -> str:
    """Where a source is read from, without paths of the machine that it was read on."""
    names = [given] if isinstance(given, str) else given
    return ", ".join(n if n.startswith(("hub:", "pypi:")) else n.rsplit("/", 1)[-1] for n in names)


def _jury(steps: Sequence[Mapping[str, Any]]) -> str:
    found = _results(steps, "jury")
    if not found:
        return ""
    parts = ["## Agreement\n"]
    alphas = [("all", found["overall"])] + [
        (f"{name}: {value}", of) for name, values in found["by"].items() for value, of in values.items()
    ]
    parts.append(
        _table(
            "Krippendorff's α (nominal, abstentions missing) with its 95 % bootstrap interval.\n",
            ["items", "n", "α"],
            [[name, of["n"], _shown(of["alpha"])] for name, of in alphas],
        )
    )
    pairs = [
        [p["first"], p["second"], _shown(p["kappa"]), _shown(p["same"])] for p in found["overall"]["pairs"]
    ]
    parts.append(_table("Pairs of jurors.\n", ["", "", "Cohen's κ", "same vote"], pairs))
    for key, title in (
        ("skills", "against calibration suites"),
        ("against", "against the labels that rows had"),
    ):
        rows = [
            [
                s["judge"],
                s["source"],
                _shown(s["sensitivity"]),
                _shown(s["specificity"]),
                _shown(s["abstained"]),
            ]
            for s in found[key]
        ]
        parts.append(
            _table(
                f"Jurors {title}, by who gave the labels.\n",
                ["juror", "labels by", "sensitivity", "specificity", "abstained"],
                rows,
            )
        )
    drifting = [
        f"{d['judge']} ({name}, p = {d[key]:.3g})"
        for d in found["drift"]
        for key, name in (("p_votes", "votes"), ("p_agreement", "agreement with the others"))
        if d[key] is not None and d[key] < 0.05
    ]
    if found["drift"]:
        said = f"Between batches these change: {', '.join(drifting)}." if drifting else "No juror drifts."
        parts.append(f"{said} (χ² tests over batches, Holm.)\n")
    return "\n".join(filter(None, parts))


def _pipeline(totals: Totals, steps: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for step in steps:
        counts = "; ".join(f"{k}: {v:,}" for k, v in step["counts"].items())
        rows.append([step["step"], f"{step['rows']:,}", f"{step['left_out']:,}", counts])
    text = _table("## How it was made\n", ["step", "rows after it", "left out", "what it found"], rows)
    return (
        text
        + f"\nKept rows stand for {totals.absorbed:,} others that said the same; `absorbed` names them.\n"
    )


def _limits(config: CurateConfig, totals: Totals, steps: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    if config.redact is None:
        lines.append("Personal data were not looked for.")
    else:
        found = ", ".join(f"{n:,} {k}" for k, n in sorted(totals.redactions.items())) or "nothing"
        lines.append(
            f"Personal data were replaced by placeholders ({found}). Names and postal addresses are not looked for."
        )
    if totals.withheld:
        lines.append(
            f"{totals.withheld:,} prompts were put back in from a set that their publisher may not pass on: "
            "do not publish these rows."
        )
    if "" in totals.licences:
        lines.append("For some rows no licence is known.")
    against = _results(steps, "split")
    if against.get("against"):
        lines.append(f"Held against the suites {', '.join(sorted(against['against']))}.")
    if against.get("unread"):
        lines.append(f"Not held against {', '.join(sorted(against['unread']))}: they could not be read.")
    human = {source for side, source, _, _ in totals.labels if source.startswith("human")}
    if not human:
        lines.append("No label is by people alone.")
    return "## Limits\n\n" + "".join(f"- {line}\n" for line in lines)


def _results(steps: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    return next((dict(s["results"]) for s in steps if s["step"] == name), {})


def _shown(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return f"– ({estimate['note']})"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}], n = {estimate['n']:,}"


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table under a title; nothing where it would be empty."""
    cells = [[str(c).replace("|", "\\|").replace("\n", " ") for c in row] for row in rows]
    if not cells:
        return ""
    lines = [list(head), ["---"] * len(head), *cells]
    return (title + "\n" if title else "") + "".join("| " + " | ".join(line) + " |\n" for line in lines)
