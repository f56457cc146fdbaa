"""Writes collapse benches for tests: real cell.json files and audit run directories, made-up scores."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from guardkeel.conversation import Side
from guardkeel.evaluation.items import ItemMeta
from guardkeel.records import write_json
from guardkeel.results import AuditResults
from guardkeel.tuning.collapse.cell import Cell, CellTune, cell_name
from guardkeel.tuning.results import Learned
from run_directories import _guard, _info, _layer, _suite, _write

Item = tuple[str, str, str]  # suite, label, split
ARMS = {  # how far the scores slide, how much noise comes with it, the share of plain's gain, the cost of a step
    "plain": (4.0, 1.0, 1.0, 1.0),
    "replay": (0.6, 0.4, 0.97, 1.5),
    "kl": (0.9, 0.3, 0.93, 1.8),
    "ssr-noop": (4.0, 1.0, 1.0, 1.3),
    "ssr-uniform": (1.2, 0.5, 0.96, 1.4),
    "ssr-full": (1.0, 0.6, 0.80, 1.4),
    "ssr-random": (3.0, 0.9, 0.99, 1.4),
    "fwssr": (1.0, 0.35, 0.97, 1.5),
    "fwssr-adaptive": (0.8, 0.3, 0.985, 1.7),
    "interpolation": (2.0, 0.5, 0.55, 1.0),
}


def items_of(suites: dict[str, tuple[int, int]], calibrate: int = 0) -> list[Item]:
    """(unsafe, safe) test items of each suite, and as many calibrate items of each label that it has."""
    found = []
    for suite, (unsafe, safe) in suites.items():
        for label, n in (("unsafe", unsafe), ("safe", safe)):
            found += [(suite, label, "test")] * n + [(suite, label, "calibrate")] * (calibrate if n else 0)
    return found


def write_cell(
    out: Path,
    scenario: str,
    arm: str,
    seed: int = 0,
    *,
    items: Sequence[Item],
    before: Sequence[float | None],
    after: Sequence[float | None],
    variant: str = "",
    losses: tuple[float, float] | None = (2.0, 1.0),
    threshold: float = 0.5,
    step_seconds: float = 1.0,
    layers: int = 0,
    moved: float = 0.0,
    error: str = "",
    steps: int = 50,
    learning_rate: float = 2e-4,
    method: str = "",
    sides: Mapping[str, Side] = MappingProxyType({}),
) -> Path:
    """One finished (or, with `error`, failed) cell; `moved` is how far its geometry went, 0 to 1."""
    folder = out / "cells" / cell_name(scenario, arm, variant, seed)
    learned = [Learned(n=40, loss=loss, accuracy=0.9 - 0.2 * loss) for loss in losses or ()]
    tune = CellTune(
        before=learned[0] if learned else None,
        after=learned[1] if learned else None,
        steps=steps,
        step_seconds=step_seconds,
        peak_memory=int(1e9 * step_seconds),
        trained=1000,
    )
    cell = Cell(
        scenario=scenario,
        arm=arm,
        method=method or arm,
        variant=variant,
        seed=seed,
        family="main",
        kind="guard",
        learning_rate=learning_rate,
        steps=steps,
        digest="d" * 64,
        tune=None if error else tune,
        seconds=1.0,
        error=error,
    )
    if not error:
        metas, rows = _items(items, sides)
        test = [i for i, item in enumerate(items) if item[2] == "test"]
        results = AuditResults(
            suites=[
                _suite(s, [metas[i] for i in test if metas[i].suite == s])
                for s in dict.fromkeys(x[0] for x in items)
            ],
            reference=_guard(_info("keel", False), [metas[i] for i in test], [_nan(before[i]) for i in test]),
            candidate=_guard(_info("tuned", False), [metas[i] for i in test], [_nan(after[i]) for i in test]),
            geometry=[_layer(k + 1, layers, True, moved) for k in range(layers)],
        )
        assert results.candidate is not None
        results.candidate.info.threshold = threshold
        _write(folder / "audit", results, rows, (list(before), list(after)), False)
    write_json(folder / "cell.json", cell.model_dump(mode="json"))
    return folder


def write_bench(
    out: Path,
    *,
    scenarios: Sequence[str] = ("domain", "medical"),
    arms: Sequence[str] = tuple(ARMS),
    seeds: int = 2,
    suites: dict[str, tuple[int, int]] | None = None,
    calibrate: int = 20,
    layers: int = 3,
    variants: Sequence[tuple[str, float]] = (),
    strength: Callable[[str], float] = lambda scenario: 1.0,
) -> Path:
    """A bench of arms that fell as ARMS says; `variants` are names with how many times harder they train."""
    items = items_of(suites or {"advbench": (40, 0), "contrast": (40, 40), "domain": (10, 60)}, calibrate)
    rng = random.Random(7)
    before = [_logistic(rng.gauss(2.0 if x[1] == "unsafe" else -3.0, 1.6)) for x in items]
    for s, scenario in enumerate(scenarios):
        for name, harder in (("", 1.0), *variants):
            for arm in arms:
                slide, noise, gain, cost = ARMS.get(arm, (1.5, 0.5, 0.9, 1.5))
                for seed in range(seeds if not name else 1):
                    draw = random.Random(f"{scenario} {arm} {seed} {name}")
                    by = strength(scenario) * harder * slide * (1 + 0.15 * draw.random())
                    after = [
                        _logistic(
                            _logit(p) - by * (1 if x[1] == "unsafe" else 0.5) + draw.gauss(0, noise * harder)
                        )
                        for p, x in zip(before, items, strict=True)
                    ]
                    write_cell(
                        out,
                        scenario,
                        arm,
                        seed,
                        variant=name,
                        items=items,
                        before=before,
                        after=after,
                        losses=(2.0 + s, 2.0 + s - 1.2 * gain * (1 + 0.02 * draw.random())),
                        step_seconds=cost * (1 + 0.1 * draw.random()),
                        layers=layers,
                        moved=min(1.0, by / 5),
                        learning_rate=2e-4 * harder,
                    )
    return out


def _items(items: Sequence[Item], sides: Mapping[str, Side]) -> tuple[list[ItemMeta], list[dict[str, Any]]]:
    metas, rows = [], []
    for i, (suite, label, split) in enumerate(items):
        side = sides.get(suite, "prompt")
        meta = ItemMeta(id=f"{suite}/{i}#{side}", suite=suite, side=side, label=label, length=9)  # type: ignore[arg-type]
        row = {
            "id": meta.id,
            "suite": suite,
            "split": split,
            "side": side,
            "label": label,
            "categories": [],
        }
        messages = [{"role": "user", "content": f"Message {i}."}]
        metas.append(meta)
        rows.append(
            row | {"source": "", "language": "en", "length": 9, "digest": f"{i:016x}", "messages": messages}
        )
    return metas, rows


def _nan(score: float | None) -> float:
    return math.nan if score is None else score


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _logit(p: float) -> float:
    return math.log(p / (1 - p))
