"""Run directories of `guardkeel heads` by hand, for tests of their page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from guardkeel.evaluation.items import ItemMeta
from guardkeel.heads.controls import trials
from guardkeel.heads.effects import effect
from guardkeel.heads.official import label
from guardkeel.heads.overlap import moves, shared, spearman
from guardkeel.heads.results import (
    Against,
    Group,
    Head,
    HeadsResults,
    Judge,
    Moved,
    Overlap,
    Ranked,
    SharedTop,
)
from guardkeel.heads.ships import top
from guardkeel.heads.summary import spread
from guardkeel.records import Estimate, RunRecord, write_record
from guardkeel.results import GuardInfo

HOSTILE = "<img src=x onerror=alert(1)>"


def info(name: str) -> GuardInfo:
    return GuardInfo(
        name=name,
        reference=f"path:{name}",
        family="keel",
        threshold=0.5,
        digest="ab" * 32,
        parameters=134515008,
        dtype="float32",
        device="cpu",
    )


def write_heads(
    folder: Path,
    *,
    layers: int = 30,
    heads: int = 9,
    chat: bool = False,
    loss: float = 0.5,
    against: bool = True,
    screened: bool = False,
    seed: int = 0,
) -> Path:
    """A finished study. Ablating the found group loses this share of the unsafe items, random heads a tenth of it."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    shape = (layers, heads)
    measures = ["kl", "dataset"] + ([] if chat else ["verdict"])
    values: dict[str, Any] = {}
    for key in ["model"] + ["against1"] * against:
        for of in ("unsafe", "benign"):
            base = rng.lognormal(-5, 2, shape)
            if screened:
                base[rng.random(shape) > 0.1] = np.nan
            for measure in measures:
                sign = rng.choice([-1, 1], shape) if measure == "verdict" else 1
                values[f"{key}.q.{of}.{measure}"] = base * sign
            values[f"{key}.q.{of}.ids"] = np.array(["a", "b"])
    unsafe, benign = values["model.q.unsafe.kl"], values["model.q.benign.kl"]
    best = top(unsafe, 10)
    group = best[:3]
    results = HeadsResults(
        model=info(HOSTILE),
        architecture="LlamaForCausalLM",
        chat=chat,
        layers=layers,
        query_heads=heads,
        key_heads=max(1, heads // 3),
        head_width=64,
        template="cd" * 32,
        modes=["q"],
        epsilon=1e-5,
        measure="kl",
        rank=1,
        suites={"unsafe": {HOSTILE: 16}, "benign": {"mine": 16}, "effect": {"mine": 100}},
        top={
            "q": [
                Head(
                    head=label(h),
                    unsafe={m: float(values[f"model.q.unsafe.{m}"][h]) for m in measures},
                    benign={"kl": float(benign[h])} if np.isfinite(benign[h]) else {},
                    benign_rank=3,
                    stability=0.8,
                )
                for h in best
            ]
        },
        ranked=[
            Ranked(
                model=HOSTILE,
                mode="q",
                set=of,
                n=16,
                exact=int(np.isfinite(values[f"model.q.{of}.kl"]).sum()),
                heads=layers * heads,
                spreads={m: spread(values[f"model.q.{of}.{m}"]) for m in measures},
                reliability=0.9,
                screening=0.95 if screened else None,
                seconds=12.5,
            )
            for of in ("unsafe", "benign")
        ],
        overlaps=[
            Overlap(
                what="sets",
                a="unsafe",
                b="benign",
                mode="q",
                set="",
                measure="kl",
                spearman=spearman(unsafe, benign),
                ceiling=0.9,
                top=[SharedTop(**vars(shared(unsafe, benign, k))) for k in (5, 10)],
            )
        ],
        group=Group(mode="q", measure="kl", heads=[label(h) for h in group], scores=[1.0, 1.5, 1.75]),
        effect=_effect(group, shape, loss),
        judge=[
            Judge(
                of="refusal",
                digest="",
                sensitivity=Estimate(value=0.6, low=0.5, high=0.7, n=58),
                specificity=Estimate(value=1.0, low=0.93, high=1.0, n=54),
                unscored=0,
            )
        ]
        if chat
        else [],
        against=[
            Against(
                info=info("tuned"),
                key="against1",
                top=["1-1"],
                moved=[
                    Moved(
                        head=label(m.head),
                        before=m.before,
                        after=m.after,
                        rank_before=m.rank_before,
                        rank_after=m.rank_after,
                    )
                    for m in moves(unsafe, values["against1.q.unsafe.kl"])
                ],
            )
        ]
        if against
        else [],
        plans=["q on unsafe: 16 prompts"],
        memory=360_000_000,
        notes=[f"a note on {HOSTILE}"],
    )
    with (folder / "heads.npz").open("wb") as out:
        np.savez(out, **values)
    write_record(
        folder,
        RunRecord(
            verb="heads",
            started_at="2026-01-01T00:00:00+00:00",
            guardkeel="0.1.0",
            command=["guardkeel", "heads", HOSTILE],
            inputs={"guard": "ab" * 32},
            timings={"total": 100.0},
            results=results.model_dump(mode="json"),
        ),
    )
    return folder


def _effect(group: list[tuple[int, int]], shape: tuple[int, int], loss: float) -> Any:
    items = [ItemMeta(f"s/{i}#prompt", "s", "prompt", "unsafe" if i % 2 else "safe") for i in range(100)]
    start = np.array([0.9 if i % 2 else 0.1 for i in range(100)])

    def ask(trial: Any) -> Any:
        scores = start.copy()
        if trial is not None:
            lost = round(
                50 * loss * len(trial.heads) / 3 * (1 if trial.kind == "found" else 0.1 * (1 + trial.draw))
            )
            scores[1 : 2 * lost : 2] = 0.1
            scores[0] = np.nan
        return scores

    return effect(items, trials(group, shape, 3), ask, 0.5, draws=50)
