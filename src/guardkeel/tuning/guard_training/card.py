"""The model card of a trained guard: README.md with the front matter that hubs read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml

from guardkeel.guards.guard_policy import GuardPolicy
from guardkeel.records import Estimate
from guardkeel.results import Behaviour
from guardkeel.tuning.guard_training.calibration import shown
from guardkeel.tuning.guard_training.config import TrainConfig
from guardkeel.tuning.guard_training.results import Contrast, Novel, TrainResults
from guardkeel.tuning.guard_training.rows import GuardRow


def card(
    name: str,
    config: TrainConfig,
    results: TrainResults,
    policy: GuardPolicy | None,
    rows: Sequence[GuardRow],
    left_out: Mapping[str, int],
) -> str:
    """The text of README.md.

    Args:
        name: what the guard is called.
        config: of the training.
        results: of the training.
        policy: what it ships with; None for a guard that is shown none.
        rows: what it learned from.
        left_out: how many items were not learned from, by why.
    """
    base = shown_base(config.base)
    parts = [
        _front(config, base),
        f"# {name}\n",
        f"A guard of family `{results.family}`, trained with guardkeel from `{base}` "
        f"({results.steps:,} steps of {config.batch * config.accumulation}, {config.adapter}, "
        f"method `{results.method}`). It says how likely a conversation is to be unsafe; "
        "it is no safeguard by itself.\n",
        _use(results),
        _policy(config, policy),
        _data(rows, left_out),
        _measured(config, results),
        _novel(results.novel),
        _limits(config, results, rows),
    ]
    return "\n".join(part for part in parts if part)


def shown_base(base: str) -> str:
    """A base by its name, without the path of the machine that it was on."""
    return Path(base).name if Path(base).exists() else base


def _front(config: TrainConfig, base: str) -> str:
    front = {
        "base_model": base,
        "library_name": "transformers" if config.adapter == "full" else "peft",
        "pipeline_tag": "text-classification",
        "tags": ["safety", "content moderation", "guard model", "guardkeel"],
    }
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n"


def _use(results: TrainResults) -> str:
    at = results.calibration
    sides = ", ".join(f"{offset:+.2f} log-odds on the {side} side" for side, offset in at.offsets.items())
    chosen = (
        f"the lowest at which at most {at.target:.0%} of the safe calibrate items are flagged on each side "
        f"(flagged there: {shown(at.flagged)}; n = {at.safe})"
        if not at.note
        else at.note
    )
    return (
        "## Use\n\n```console\n$ guardkeel audit THIS_FOLDER\n```\n\n"
        f"Threshold {at.threshold:.4g}{f', {sides}' if sides else ''}: {chosen}. "
        "Choose your own on your own data.\n"
    )


def _policy(config: TrainConfig, policy: GuardPolicy | None) -> str:
    if policy is None:
        return (
            "## Policy\n\nThe guard is shown no policy: its categories are fixed. "
            f'Read {config.strictness}ly, "Needs Caution" is {_caution(config)}.\n'
        )
    listed = "".join(
        f"- {c.name}{f': {c.description}' if c.description else ''}\n" for c in policy.categories
    )
    return (
        f"## Policy\n\nIt judges by the policy that it is shown. Its own is `{policy.name}`, {policy.strictness}:\n\n"
        f"{listed}\nGive another with `--guard-policy`. In training {config.varied:.0%} of the items were shown under "
        f"varied policies: each category left out with a chance of {config.dropout:g}"
        f"{', in another order' if config.shuffle else ''}; {config.flipped:.0%} of the unsafe ones without any of "
        "their categories, as safe ones.\n"
    )


def _caution(config: TrainConfig) -> str:
    return "unsafe" if config.strictness == "strict" else "safe"


def _data(rows: Sequence[GuardRow], left_out: Mapping[str, int]) -> str:
    labels = Counter((r.side, r.by, r.label) for r in rows)
    table = _table(
        ["side", "label by", "unsafe", "safe"],
        [
            [side, by, labels[side, by, "unsafe"], labels[side, by, "safe"]]
            for side, by in sorted({(s, b) for s, b, _ in labels})
        ],
    )
    licences = Counter((r.source or "–", r.licence or "not known") for r in rows)
    sources = _table(
        ["source", "licence", "items"], [[s, lic, n] for (s, lic), n in sorted(licences.items())]
    )
    text = f"## Data\n\n{len(rows):,} labelled items.\n\n{table}\n{sources}"
    said = "; ".join(f"{why}: {n:,}" for why, n in left_out.items() if n)
    return text + (f"\nNot learned from: {said}.\n" if said else "")


def _measured(config: TrainConfig, results: TrainResults) -> str:
    if results.test is None:
        return "## Evaluation\n\nThere were no test items. Audit it before you rely on it.\n"
    rows = [["all", *_figures(results.test)]]
    rows += [[f"{s.by}: {s.value}", *_figures(s.behaviour)] for s in results.slices]
    if results.topics is not None:
        rows.append(["topics' rules", *_figures(results.topics)])
    head = ["items", "n unsafe", "n safe", "recall", "FPR", "AUROC", "unscored"]
    return (
        '## Evaluation\n\nOn the test split, at the threshold above, with 95 % intervals; "source" is who gave the '
        f"labels: figures of labels by models say how like those models the guard is.\n\n{_table(head, rows)}"
    )


def _figures(b: Behaviour) -> list[str]:
    return [
        str(b.n_unsafe),
        str(b.n_safe),
        interval(b.recall),
        interval(b.fpr),
        interval(b.auroc),
        str(b.n_unscored),
    ]


def _novel(novel: Novel | None) -> str:
    if novel is None:
        return ""
    rows = [
        ["recall", novel.recall.n, *map(interval, _three(novel.recall))],
        ["false alarms", novel.false_alarms.n, *map(interval, _three(novel.false_alarms))],
    ]
    rows += [[name, c.n, *map(interval, _three(c))] for name, c in novel.by_category.items()]
    return (
        f"## Categories that it never learned\n\nLeft out of policy and data: {', '.join(novel.categories)}. "
        "Flagged under a policy that names them (given) and under its own (absent):\n\n"
        + _table(["", "n", "given", "absent", "given − absent"], rows)
    )


def _three(c: Contrast) -> tuple[Estimate, Estimate, Estimate]:
    return c.given, c.absent, c.gain


def _limits(config: TrainConfig, results: TrainResults, rows: Sequence[GuardRow]) -> str:
    lines = [
        f"Items were read up to {config.max_tokens} tokens with their policy; longer ones are less tested."
    ]
    if not any(r.by.startswith("human") for r in rows):
        lines.append("No label that it learned from is by people.")
    lines.append("It inherits what its base and its data get wrong; look at false alarms by group of people.")
    lines.append(f"The terms of `{shown_base(config.base)}` and the licences above apply to it.")
    lines += results.notes
    return "## Limits\n\n" + "".join(f"- {line}\n" for line in lines)


def interval(e: Estimate) -> str:
    """A value with its interval as text."""
    if e.value is None:
        return "–"
    return f"{e.value:.3f}" + (
        f" ({e.low:.3f}–{e.high:.3f})" if e.low is not None and e.high is not None else ""
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    cells = [[str(c).replace("|", "\\|").replace("\n", " ") for c in row] for row in rows]
    lines = [list(head), ["---"] * len(head), *cells]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
