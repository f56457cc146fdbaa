"""Does curated data make better guards? Five questions, arm by arm, resumable.

    GUARDKEEL_DATA=… python benchmarks/curate/run.py --out runs/curate --dry-run
    GUARDKEEL_DATA=… python benchmarks/curate/run.py --out runs/curate --parts a,b
    python benchmarks/curate/run.py --out runs/curate --tables

    a   categories held out of training, their recall when the policy names them: a policy that is always the same,
        policies that vary, and a blend of topic-following rows beside that
    b   labels of people, of one small guard, of a jury of three (ToxicChat); of a crowd, one and three of it (DICES)
    c   labels of people and of a jury mixed: plain, weighted by source, and the people's alone
    d   candidates for a better keel-135m, against it, on suites of other origin: keel-135m trained on, and a guard that
        reads its policy from the same base; permissive rows alone
    e   the same short recipe on two architectures (Gemma 3 270M comes under the Gemma Terms of Use: read them first)

Every arm is an ordinary `guardkeel train-guard` run. What is there is not made again, and a killed arm goes on where
it stopped. Sets of restricted licence (ToxicChat) stay on this machine, and so does what is trained on them.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arms import Arm, arms
from judging import Items, Scored, behaviour, compared, items_of, judged
from sets import dices, label_skill, mixture, toxic

from guardkeel.records import read_record, write_json, write_text
from guardkeel.tuning.guard_training.config import read_config
from guardkeel.tuning.guard_training.estimate import estimate
from guardkeel.tuning.guard_training.run import GUARD, run

SHIPPED = "keel-135m"


def main(args: argparse.Namespace) -> None:
    """Make what is asked for and not there yet, then the tables."""
    wanted = [
        a
        for a in arms(args.steps, args.accept_terms)
        if a.part in args.parts.split(",") and args.arm in (None, a.folder)
    ]
    if args.tables:
        tables(args, wanted, None)
        return
    sets = made_sets(args, wanted)
    for arm in wanted:
        folder = args.out / "arms" / arm.folder
        config = read_config(None, arm.config(sets))
        if args.dry_run:
            plan = estimate(config)
            print(
                f"{arm.folder:18} {plan.items:>6} items {plan.steps:>4} steps {plan.tokens:>6} tokens a step "
                f"about {plan.seconds / 60:.0f} min"
            )
        elif not (folder / "run.json").is_file():
            begun = time.monotonic()
            run(config, folder, command=["benchmarks/curate/run.py"], watch=told)
            print(f"{arm.folder}: {(time.monotonic() - begun) / 60:.1f} min", flush=True)
    if not args.dry_run:
        tables(args, wanted, sets)


def made_sets(args: argparse.Namespace, wanted: list[Arm]) -> dict[str, Path]:
    """The sets that these arms read."""
    folder = args.out / "sets"
    found = {"mixture": mixture(folder, args.data)}
    if any(a.set.startswith("toxic") for a in wanted):
        found |= {f"toxic-{k}": v for k, v in toxic(folder, args.data, told).items()}
    if any(a.set.startswith("dices") for a in wanted):
        found |= {f"dices-{k}": v for k, v in dices(folder, args.data).items()}
    return found


def tables(args: argparse.Namespace, wanted: list[Arm], sets: dict[str, Path] | None) -> None:
    """Judge every finished arm, compare it with the one that it is meant to be compared with, and write it down."""
    done = [a for a in wanted if (args.out / "arms" / a.folder / "run.json").is_file()]
    sets = sets or made_sets(args, done)
    found: dict[str, Any] = {}
    scored: dict[str, Scored] = {}
    for arm in done:
        items = items_of(arm, sets, args.data, args.items)
        scored[arm.name] = judged(
            args.out, str(args.out / "arms" / arm.folder / GUARD), arm.folder, items, told
        )
        record = read_record(args.out / "arms" / arm.folder)
        found[arm.folder] = behaviour(scored[arm.name]) | {
            "n_unsafe": int(items.unsafe.sum()),
            "n_safe": int((~items.unsafe).sum()),
            "minutes": record.timings["total"] / 60,
            "novel": record.results["novel"],
        }
        other = reference(args, arm, items, scored)
        if other is not None:
            found[arm.folder][f"against {arm.against}"] = compared(scored[arm.name], other)
    write_json(args.out / f"results-{args.parts.replace(',', '')}.json", found)
    text = "\n".join([*lines(found), "", *novel(found), "", *skill(sets)])
    write_text(args.out / f"results-{args.parts.replace(',', '')}.md", text + "\n")
    print(text)


def reference(args: argparse.Namespace, arm: Arm, items: Items, scored: dict[str, Scored]) -> Scored | None:
    """The scores that an arm is compared with, if they are there."""
    if arm.against == SHIPPED:
        return judged(args.out, SHIPPED, SHIPPED, items, told)
    return scored.get(arm.against)


def lines(found: dict[str, Any]) -> Iterator[str]:
    """A table in Markdown."""
    yield "| arm | n unsafe | n safe | recall | FPR | AUROC | Δ AUROC | Δ recall | Δ FPR | minutes |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for name, f in found.items():
        other = next((v for k, v in f.items() if k.startswith("against")), None)
        gains = [_said(other[k], signed=True) if other else "–" for k in ("auroc", "recall", "fpr")]
        cells = [_said(f[k]) for k in ("recall", "fpr", "auroc")]
        yield f"| {name} | {f['n_unsafe']} | {f['n_safe']} | {' | '.join([*cells, *gains])} | {f['minutes']:.0f} |"


def novel(found: dict[str, Any]) -> Iterator[str]:
    """What naming a held-out category does: in the whole policy and not, and as the only category of a policy."""
    known = {name: f["novel"] for name, f in found.items() if f["novel"]}
    if known:
        yield "| arm | recall, named | not named | difference | alone: recall | alone: false alarms |"
        yield "|---|---|---|---|---|---|"
    for name, f in known.items():
        recall = f["recall"]
        alone = [_share([pair[side] for pair in f["alone"].values()]) for side in (0, 1)]
        cells = [_said(recall["given"]), _said(recall["absent"]), _said(recall["gain"], signed=True), *alone]
        yield f"| {name} | {' | '.join(cells)} |"


def skill(sets: dict[str, Path]) -> Iterator[str]:
    """How good the labels of the fit rows are that are not people's."""
    for name, path in sets.items():
        kind, _, by = name.partition("-")
        if by in ("single", "jury"):
            sensitivity, specificity, count = label_skill(path, sets[f"{kind}-human"])
            yield f"labels of {name}: sensitivity {sensitivity:.2f}, specificity {specificity:.2f}, {count} rows"


def _share(parts: list[dict[str, Any]]) -> str:
    """A share over several categories."""
    count = sum(p["n"] for p in parts)
    return f"{sum(p['value'] * p['n'] for p in parts) / count:.2f} of {count}" if count else "–"


def _said(e: dict[str, Any], *, signed: bool = False) -> str:
    if e["value"] is None:
        return "–"
    form = "+.3f" if signed else ".3f"
    ends = "" if e["low"] is None else f" ({e['low']:{form}} to {e['high']:{form}})"
    return f"{e['value']:{form}}{ends}"


def told(what: str, done: int, total: int | None) -> None:
    """A line now and then."""
    if total and (done == total or done % max(1, total // 10) == 0):
        print(f"  {what} {done}/{total}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/curate"))
    parser.add_argument("--data", type=Path, default=os.environ.get("GUARDKEEL_DATA"), help="the public sets")
    parser.add_argument("--parts", default="a,b,c,d", help="of a, b, c, d, e")
    parser.add_argument("--arm", help="only this one, as a-fold0-topics")
    parser.add_argument(
        "--steps", type=int, default=120, help="of one training; some parts take a share of it"
    )
    parser.add_argument(
        "--items", type=int, default=200, help="most unsafe items to judge; as many safe ones"
    )
    parser.add_argument(
        "--accept-terms",
        action="store_true",
        help="for part e: you have read the Gemma Terms of Use and accept",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="make the sets and say how long each arm takes"
    )
    parser.add_argument(
        "--tables", action="store_true", help="judge and compare what is finished; train nothing"
    )
    given = parser.parse_args()
    if given.data is None:
        parser.error("give --data, or set GUARDKEEL_DATA")
    given.data = Path(given.data)
    main(given)
