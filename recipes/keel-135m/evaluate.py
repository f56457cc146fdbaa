"""Measure keel-135m on suites of other origin than its training data.

    python recipes/keel-135m/evaluate.py --data DIR --guard GUARD --out table.json

The tables leave the `calibrate` splits out and, with --train, every item that repeats a text of the training
mixture. Texts are never printed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from guardkeel.conversation import Turn, normalised, read_jsonl
from guardkeel.evaluation.behaviour import measure, slices
from guardkeel.evaluation.items import group_codes
from guardkeel.evaluation.ranking import auroc
from guardkeel.evaluation.selection import meta
from guardkeel.evaluation.suites import SuiteItem, load_suite
from guardkeel.guards.load import load_guard
from guardkeel.records import write_json

CARDS = Path(__file__).parents[2] / "benchmarks" / "cards"
# card or built-in suite → most items
HARMFUL = {
    "advbench": 520,
    "malicious_instruct": 100,
    "simple_safety_tests": 100,
    "harmbench_test_standard": 200,
}
ORDINARY = {"alpaca_instructions": 500, "banking77_test": 400, "keel-domain": 500}
CONTRAST = {"jailbreakbench": 200, "notinject": 339, "cyberseceval_frr": 400, "keel-contrast": 330}
BOTH = {
    "toxicchat_test": 800,
    "wildguard_test": 800,
    "aegis_subset": 438,
    "deepset_injections": 662,
    "assebench_security": 112,
}
BUILT_IN = {
    "do-not-answer": 939,
    "bastion-injection": 181,
    "pyrit-objective": 190,
    "pyrit-refusal": 118,
    "in-the-wild-jailbreaks": 200,
}


def judged(item: SuiteItem) -> list[Turn]:
    """The turn under judgement."""
    role = "user" if item.side == "prompt" else "assistant"
    return [t for t in item.example.conversation.turns if t.role == role][-1:]


def items_of(name: str, most: int, data: Path, seen: set[str]) -> list[SuiteItem]:
    """Items of a suite that are not its `calibrate` split, thinned evenly to `most`."""
    card = CARDS / f"{name}.toml"
    suite = load_suite(card if card.exists() else name, data=data)
    items = [i for i in suite.items() if i.split != "calibrate"]
    fresh = [i for i in items if not any(t.content and normalised(t.content) in seen for t in judged(i))]
    if len(fresh) < len(items):
        print(f"{name}: {len(items) - len(fresh)} items left out that are in the training mixture")
    items = fresh
    step = max(1, len(items) // most)
    return items[::step][:most]


def main() -> None:
    """Score everything once; print and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--guard", default="keel-135m")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--train", type=Path, help="the training mixture")
    parser.add_argument("--share", type=float, default=1.0, help="take only this share of each suite")
    args = parser.parse_args()
    mixture = read_jsonl(args.train) if args.train else ()
    seen = {normalised(t.content) for e in mixture for t in e.conversation.turns}
    guard = load_guard(args.guard)
    scored: dict[str, tuple[list[SuiteItem], np.ndarray]] = {}
    for group in (HARMFUL, ORDINARY, CONTRAST, BOTH, BUILT_IN):
        for name, most in group.items():
            items = items_of(name, max(20, round(most * args.share)), args.data, seen)
            verdicts = guard.score([i.judgement for i in items], categories=False)
            scored[name] = (items, np.array([np.nan if v.unsafe is None else v.unsafe for v in verdicts]))
            metas = [meta(i) for i in items]
            found = measure(
                scored[name][1], [m.unsafe for m in metas], guard.threshold, groups=group_codes(metas)
            )
            print(
                f"{name:26} n {found.n:5}  recall {_say(found.recall)}  fpr {_say(found.fpr)}  "
                f"auroc {_say(found.auroc)}  unscored {found.n_unscored}",
                flush=True,
            )
    harm, plain, contrast = (_pool(scored, g) for g in (HARMFUL, ORDINARY, CONTRAST))
    harm = harm[0][harm[1]], harm[1][harm[1]]
    rows = {
        "harmful vs ordinary benign": (harm, (plain[0][~plain[1]], plain[1][~plain[1]])),
        "harmful vs contrast": (harm, (contrast[0][~contrast[1]], contrast[1][~contrast[1]])),
    }
    for name in ("notinject", "cyberseceval_frr", "keel-contrast"):
        rows[f"harmful vs {name}"] = (harm, (scored[name][1], np.zeros(len(scored[name][1]), bool)))
    table: dict[str, object] = {}
    for name, (positive, negative) in rows.items():
        scores, labels = (
            np.concatenate([positive[0], negative[0]]),
            np.concatenate([positive[1], negative[1]]),
        )
        keep = ~np.isnan(scores)
        table[name] = auroc(scores[keep], labels[keep]).model_dump()
        print(f"{name:32} AUROC {_say(auroc(scores[keep], labels[keep]))}")
    for at in sorted({guard.threshold, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7}):
        print(
            f"at {at:.3f}: harmful recall {np.nanmean(harm[0] >= at):.3f}, "
            f"ordinary FPR {np.nanmean(plain[0][~plain[1]] >= at):.3f}, "
            f"contrast FPR {np.nanmean(contrast[0][~contrast[1]] >= at):.3f}"
        )
    everything = [i for items, _ in scored.values() for i in items]
    pooled = slices(
        [meta(i) for i in everything], np.concatenate([s for _, s in scored.values()]), guard.threshold
    )
    for part in pooled:
        if part.by in ("category", "side", "length"):
            b = part.behaviour
            print(f"{part.by:9} {part.value:34} n {b.n:5}  recall {_say(b.recall)}  fpr {_say(b.fpr)}")
    if args.out:
        for name, (items, scores) in scored.items():
            metas = [meta(i) for i in items]
            table[name] = measure(
                scores, [m.unsafe for m in metas], guard.threshold, groups=group_codes(metas)
            ).model_dump()
        table["slices"] = [p.model_dump() for p in pooled]
        write_json(args.out, table)


def _pool(
    scored: dict[str, tuple[list[SuiteItem], np.ndarray]], group: dict[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    scores = np.concatenate([scored[name][1] for name in group])
    labels = np.concatenate([[i.label == "unsafe" for i in scored[name][0]] for name in group])
    return scores, labels.astype(bool)


def _say(estimate: object) -> str:
    value, low, high = estimate.value, estimate.low, estimate.high  # type: ignore[attr-defined]
    return "    –              " if value is None else f"{value:.3f} ({low:.3f}–{high:.3f})"


if __name__ == "__main__":
    main()
