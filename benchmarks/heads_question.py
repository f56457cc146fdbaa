"""Do the heads that carry a guard's verdict change when it is fine-tuned, where it collapses and where it is kept?

    python benchmarks/heads_question.py --bench runs/collapse --out runs/heads-question
    python benchmarks/heads_question.py --scenarios domain-safe,agentic --arms plain,fwssr,kl \
        --guard repaired=runs/repair/bank/sweep/fused

The guards are the reference, cells of a collapse bench (`--seed`), and others by name. Each has a study of its own
(`guardkeel heads`: a run directory under --out, ranked on unsafe and on benign items, its own group ablated beside
random heads and heads of the same layers). Then, for each guard beside the reference:

    agreement    rank correlation with the reference's ranking, what noise allows, and how many of the best are the same
    separation   the same by what a head does to the distance of unsafe from benign items: how far the log-odds of
                 unsafe fall without it on unsafe items, less on benign ones (nats, mean); and Σ |that| over all heads
    importance   log(value after / before) of the reference's best heads, less that of other heads of their layers
    weights      relative change ‖ΔW‖ / ‖W‖ of their slices of q, k, v and o, less that of other heads of their layers
    its heads    what ablating the reference's group does to this guard, beside controls

Differences come with the share of random sets of as many heads of the same layers that differ as much (p). Everything
is resumed by repeating the command; answer.json is written anew after each guard.
"""

from __future__ import annotations

import argparse
import gc
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from guardkeel.evaluation.items import Floats
from guardkeel.evaluation.selection import meta
from guardkeel.heads import ablated, effect, layout_of, read_heads, trials
from guardkeel.heads.config import HeadsConfig
from guardkeel.heads.controls import Trial
from guardkeel.heads.layout import Head
from guardkeel.heads.material import material
from guardkeel.heads.official import parsed
from guardkeel.heads.outputs import Arrays
from guardkeel.heads.results import HeadsResults
from guardkeel.heads.ships import top
from guardkeel.heads.studies import run
from guardkeel.heads.subject import Subject, open_subject
from guardkeel.heads.summary import attainable, pairs
from guardkeel.records import environment, write_json
from guardkeel.report.heads import write_heads_report, write_heatmap

DRAWS = 2000


def guards(args: argparse.Namespace) -> dict[str, str]:
    """References by name, the first guard first."""
    found = {"reference": args.reference}
    for scenario in filter(None, args.scenarios.split(",")):
        for arm in args.arms.split(","):
            folder = args.bench / "cells" / scenario / arm / "base" / f"seed-{args.seed}" / "tune"
            if (folder / "tuned").is_dir():
                found[f"{scenario}/{arm}"] = str(folder)
            else:
                print(f"{scenario}/{arm}: no such cell", flush=True)
    for text in args.guard:
        name, _, reference = text.partition("=")
        found[name] = reference
    return found


def studied(config: HeadsConfig, folder: Path) -> tuple[HeadsResults, Arrays]:
    """A study, unless it is there."""
    if not (folder / "run.json").is_file():
        run(config, folder, watch=told)
        write_heatmap(folder)
        write_heads_report(folder)
    _, results, arrays = read_heads(folder)
    return results, arrays


def agreement(before: Any, after: Any, of: str, measure: str, mode: str) -> dict[str, Any]:
    """Two studies' rankings on one set."""
    (one, a), (other, b) = before, after
    noise = [
        next(r.reliability for r in results.ranked if (r.mode, r.set) == (mode, of))
        if results.measure == measure
        else None
        for results in (one, other)
    ]
    name = f"model.{mode}.{of}.{measure}"
    row = pairs(
        "models",
        "reference",
        "guard",
        a[name],
        b[name],
        attainable(*noise),
        mode=mode,
        set=of,
        measure=measure,
    )
    return {"spearman": row.spearman, "ceiling": row.ceiling, "top": [t.model_dump() for t in row.top]}


def separation(arrays: Arrays, mode: str) -> Floats:
    """How much closer unsafe and benign items come when a head is ablated, (layers, heads), nats."""
    found: Floats = arrays[f"model.{mode}.unsafe.verdict"] - arrays[f"model.{mode}.benign.verdict"]
    return found


def separating(before: Arrays, after: Arrays, mode: str) -> dict[str, Any]:
    """Two guards' heads by `separation`."""
    x, y = (separation(arrays, mode) for arrays in (before, after))
    row = pairs("models", "reference", "guard", x, y, mode=mode, set="", measure="verdict")
    return {
        "spearman": row.spearman,
        "top": [t.model_dump() for t in row.top],
        "heads": [f"{i}-{j}" for i, j in top(y, 10)],
        "total": float(np.abs(y).sum()),
    }


def contrast(values: Floats, heads: list[Head], seed: int) -> dict[str, float]:
    """Mean over these heads, less that over other heads of their layers; p from random sets of the same layers."""
    layers = [layer for layer, _ in heads]
    others = {i: [j for j in range(values.shape[1]) if (i, j) not in set(heads)] for i in set(layers)}
    mine = float(np.mean([values[h] for h in heads]))
    beside = [np.mean(values[i, others[i]]) for i in layers if others[i]]
    if not beside:
        raise SystemExit("no other heads in these layers: take a model with more, or a smaller --best")
    rest = float(np.mean(beside))
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(DRAWS):
        sets = {i: rng.permutation(values.shape[1])[: layers.count(i)] for i in set(layers)}
        drawn.append(float(np.mean([values[i, j] for i, some in sets.items() for j in some])))
    centre = float(np.mean(drawn))
    p = (1 + sum(abs(d - centre) >= abs(mine - centre) - 1e-12 for d in drawn)) / (1 + DRAWS)
    return {"heads": mine, "others": rest, "difference": mine - rest, "p": p}


def weights(subject: Subject) -> list[dict[str, np.ndarray]]:
    """The attention projections of every block, float32."""
    return [
        {
            p: getattr(b.attention, p).weight.detach().float().cpu().numpy().copy()
            for p in ("q_proj", "k_proj", "v_proj", "o_proj")
        }
        for b in layout_of(subject.model).blocks
    ]


def changed(subject: Subject, start: list[dict[str, np.ndarray]]) -> Floats:
    """‖ΔW‖ / ‖W‖ over each head's slices, (layers, heads)."""
    layout = layout_of(subject.model)
    found = np.zeros((layout.layers, layout.heads))
    for i, now in enumerate(weights(subject)):
        for head in range(layout.heads):
            moved = size = 0.0
            for part, (axis, where) in layout.slices(head).items():
                at = (slice(None), where) if axis else where
                moved += float(((now[part][at] - start[i][part][at]) ** 2).sum())
                size += float((start[i][part][at] ** 2).sum())
            found[i, head] = (moved / size) ** 0.5
    return found


def without(
    subject: Subject, group: list[Head], config: HeadsConfig, items: list[Any], folder: Path
) -> dict[str, Any]:
    """What ablating this group does to a guard, beside controls."""
    layout = layout_of(subject.model)
    asked = trials(group, (layout.layers, layout.heads), config.controls, config.seed)

    def ask(trial: Trial | None) -> Floats:
        inside = (
            ablated(subject.model, trial.heads, config.modes[0], config.epsilon) if trial else nullcontext()
        )
        with inside:
            return subject.answers(
                items, trial.name if trial else "as-it-is", folder, lambda done, total: None
            )

    found = effect([meta(i) for i in items], asked, ask, subject.threshold, seed=config.seed)
    return found.model_dump(mode="json")


def told(what: str, done: int, total: int | None) -> None:
    """A line where something ends."""
    if total and done == total:
        print(f"  {what}: {done}", flush=True)


def main(args: argparse.Namespace) -> None:
    """Study what is not there yet, and compare."""
    settings = {
        "items": args.items,
        "effect_items": args.effect_items,
        "controls": args.controls,
        "size": args.size,
        "measure": args.measure,
        "suites": args.suites.split(","),
        "data": args.data,
        "device": args.device,
    }
    mode = "q"
    listed = guards(args)
    versions, hardware = environment()
    answer: dict[str, Any] = {"settings": settings, "versions": versions, "hardware": hardware, "guards": {}}
    base: Any = None
    start: list[dict[str, np.ndarray]] = []
    for name, reference in listed.items():
        print(name, flush=True)
        config = HeadsConfig(guard=reference, **settings)
        folder = args.out / name.replace("/", "-")
        results, arrays = studied(config, folder)
        row: dict[str, Any] = {
            "guard": reference,
            "run": str(folder),
            "group": results.group.heads if results.group else [],
            "top": [h.head for h in results.top[mode]],
            "effect": results.effect.model_dump(mode="json") if results.effect else None,
        }
        if base is None:
            base = (results, arrays)
        row["separation"] = separating(base[1], arrays, mode)
        ranking = base[1][f"model.{mode}.unsafe.{args.measure}"]
        best = top(ranking, min(args.best, ranking.size // 4))
        group = [parsed(h) for h in base[0].group.heads]
        cache = folder / "beside-the-reference.json"
        if name != "reference":
            for of in ("unsafe", "benign"):
                for measure in ("kl", "dataset", "verdict"):
                    if all(f"model.{mode}.{of}.{measure}" in a for a in (arrays, base[1])):
                        key = f"agreement, {of}, {measure}"
                        row[key] = agreement(base, (results, arrays), of, measure, mode)
            values = [np.abs(a[f"model.{mode}.unsafe.{args.measure}"]) + 1e-12 for a in (base[1], arrays)]
            row["importance"] = contrast(np.log(values[1] / values[0]), best, args.seed)
        if cache.is_file():
            row |= json.loads(cache.read_text())
        elif name != "reference" or not start:
            read = material(config)
            if not start:
                first = open_subject(listed["reference"], config, read.ranked["unsafe"])
                start = weights(first)
                del first
            if name != "reference":
                subject = open_subject(reference, config, read.ranked["unsafe"])
                moved = changed(subject, start)
                more = {
                    "weights": contrast(moved, best, args.seed) | {"mean": float(moved.mean())},
                    "effect of the reference's heads": without(
                        subject, group, config, read.judged, folder / "reference-heads"
                    ),
                }
                write_json(cache, more)
                row |= more
                del subject
            gc.collect()
        answer["guards"][name] = row
        write_json(args.out / "answer.json", answer)
        summary(name, row)


def summary(name: str, row: dict[str, Any]) -> None:
    """A guard in a few lines."""

    def fall(effect: dict[str, Any] | None) -> str:
        found = [t for t in (effect or {"trials": []})["trials"] if t["kind"] == "found"]
        if not found or found[-1]["recall"]["before"] is None:
            return "–"
        last = found[-1]["recall"]
        size = found[-1]["size"]
        rows = [b for b in effect["beside"] if b["metric"] == "recall" and b["size"] == size]  # type: ignore[index]
        bands = "; ".join(f"{b['kind']} {100 * b['low']:+.0f} to {100 * b['high']:+.0f}" for b in rows)
        return f"recall {last['before']:.2f} → {last['after']:.2f} ({bands} points)"

    print(f"  group {' '.join(row['group'])}: {fall(row['effect'])}", flush=True)
    found = row["separation"]
    same = [t["count"] for t in found["top"] if t["k"] == 10]
    print(
        f"  separation: ρ {found['spearman']:.2f}, of 10 {same}, in all {found['total']:.0f} nats", flush=True
    )
    for key, value in row.items():
        if key.startswith("agreement, unsafe") and value["spearman"] is not None:
            most = "" if value["ceiling"] is None else f" of {value['ceiling']:.2f}"
            print(
                f"  {key}: ρ {value['spearman']:.2f}{most}, of 10 {[t['count'] for t in value['top'] if t['k'] == 10]}",
                flush=True,
            )
    for key in ("importance", "weights"):
        if key in row:
            found = row[key]
            print(
                f"  {key}: heads {found['heads']:.3g}, others {found['others']:.3g}, p {found['p']:.3f}",
                flush=True,
            )
    if "effect of the reference's heads" in row:
        print(
            f"  the reference's heads: {fall(row['effect of the reference' + chr(39) + 's heads'])}",
            flush=True,
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bench", type=Path, default=Path("runs/collapse"))
    parser.add_argument("--out", type=Path, default=Path("runs/heads-question"))
    parser.add_argument("--reference", default="keel-135m")
    parser.add_argument("--scenarios", default="domain-safe")
    parser.add_argument("--arms", default="plain,fwssr,fwssr-adaptive,kl,replay,interpolation")
    parser.add_argument("--guard", action="append", default=[], help="NAME=GUARD, more guards")
    parser.add_argument("--suites", default="advbench@local,do-not-answer@local,keel-domain,keel-contrast")
    parser.add_argument("--data", default=None, help="folder that data: references start from")
    parser.add_argument("--measure", default="kl", choices=["kl", "dataset", "verdict"])
    parser.add_argument("--best", type=int, default=10, help="heads of the reference that are looked at")
    parser.add_argument("--items", type=int, default=16)
    parser.add_argument("--effect-items", type=int, default=60)
    parser.add_argument("--controls", type=int, default=5)
    parser.add_argument("--size", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    main(arguments())
