"""Writes audit run directories for tests: real measures and gate, synthetic scores, harmless texts."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guardkeel.evaluation.behaviour import measure, slices
from guardkeel.evaluation.compare import compare
from guardkeel.evaluation.gate import decide
from guardkeel.evaluation.items import ItemMeta, Pair
from guardkeel.evaluation.policy import Policy
from guardkeel.records import Estimate, RunRecord, write_record, write_text
from guardkeel.results import (
    AuditResults,
    GuardInfo,
    GuardResult,
    LayerGeometry,
    Measure,
    SuiteInfo,
)

HOSTILE = (
    "<script>window.pwned=1</script>",
    "</script><script>window.pwned=2</script>",
    "</style><style>body{display:none}</style>",
    "</details></article></main><h1 id='broken'>broken out</h1>",
    "\" onmouseover=\"window.pwned=3\" x='' onclick='window.pwned=4'",
    "<img src=x onerror=window.pwned=5><svg onload=window.pwned=6>",
    "<iframe srcdoc='<script>parent.pwned=7</script>'></iframe><a href='javascript:window.pwned=8'>go</a>",
    "{{ 7*7 }} {% raw %} {{ cycler.__init__.__globals__ }} ${7*7} <%= 7*7 %>",
    "abc\u202edef\u2066ghi\u2069 \u200b\u200f\ufeff \U000e0041\U000e0042",
    "nul\x00 bell\x07 escape\x1b[31m delete\x7f next\x85 lone\ud800 \udfff end\r\nline\rreturn\u2028sep",
    "<!-- comment --!> <![CDATA[ ]]> &lt;b&gt; &#x3c;script&#x3e; <plaintext> <base href='//evil.invalid/'>",
    "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L" + "\u0301" * 200,
)
MEGABYTE = "<script>window.pwned=9</script>" * 33_000  # over a million characters
CATEGORIES = ("Threat", "Fraud/Deception", "Malware", "PII/Privacy", "Harassment", "Violence")
SUITES = (
    ("refusal-pairs", 0.5, "prompt"),
    ("agent-steps", 0.4, "trajectory"),
    ("bank-messages", 0.0, "prompt"),
)
SUITES += (("direct-requests", 1.0, "prompt"), ("long-replies", 0.5, "response"))
TOPICS = ("a parcel", "the train to Basel", "my savings account", "a recipe for soup", "the second invoice")


def write_run(
    directory: str | Path,
    *,
    items: int = 600,
    candidate: bool = True,
    collapse: float = 1.0,
    layers: int = 8,
    decision: bool = True,
    comparison: bool = True,
    unscored: float = 0.01,
    texts: Sequence[str] = (),
    hostile: bool = False,
    seed: int = 0,
) -> Path:
    """Write a run directory and return it.

    `collapse` is how far the candidate fell (0: not at all, 1: most unsafe items are missed); `texts` replace
    the messages in turn; `hostile` puts HOSTILE into every field that a user or a model can fill.
    """
    directory = Path(directory)
    rng = random.Random(seed)
    metas, rows = _items(items, rng, (*HOSTILE, MEGABYTE) if hostile else tuple(texts), hostile)
    before = [_score(m, 0.0, rng) for m in metas]
    after = [_moved(m, s, collapse, rng) for m, s in zip(metas, before, strict=True)]
    before, after = ([None if rng.random() < unscored else s for s in x] for x in (before, after))

    tested = [i for i, row in enumerate(rows) if row["split"] == "test"]
    held = [i for i, row in enumerate(rows) if row["split"] == "calibrate"]

    def of(where: list[int], scores: list[float | None]) -> list[float]:
        return [float("nan") if scores[i] is None else float(scores[i]) for i in where]

    meta = [metas[i] for i in tested]
    results = AuditResults(
        suites=[
            _suite(name, [m for m in meta if m.suite == name])
            for name in dict.fromkeys(m.suite for m in meta)
        ],
        reference=_guard(_info("keel-135m", hostile), meta, of(tested, before)),
        shortened=3,
    )
    if candidate:
        results.candidate = _guard(_info("keel-135m-bank", hostile), meta, of(tested, after))
    if candidate and comparison:
        calibration = Pair([metas[i] for i in held], of(held, before), of(held, after))
        results.comparison = compare(
            meta, of(tested, before), of(tested, after), 0.5, 0.5, calibrate=calibration, draws=60, seed=seed
        )
    results.geometry = [_layer(i + 1, layers, candidate, collapse) for i in range(layers)]
    if decision:
        results.decision = decide(results, Policy())
    _write(directory, results, rows, (before, after if candidate else None), hostile)
    return directory


def _items(
    count: int, rng: random.Random, texts: Sequence[str], hostile: bool
) -> tuple[list[ItemMeta], list[dict[str, Any]]]:
    metas, rows = [], []
    for i in range(count):
        suite, share, side = SUITES[i % len(SUITES)]
        suite += HOSTILE[0] if hostile and i % len(SUITES) == 0 else ""
        unsafe = (i // len(SUITES)) % 20 < 20 * share
        category = CATEGORIES[rng.randrange(6) if rng.random() < 0.9 else 5] if unsafe else ""
        text = texts[i % len(texts)] if texts else _message(i, rng)
        messages: list[dict[str, Any]] = [{"role": "user", "content": text}]
        if side != "prompt":
            reply = (
                texts[(i + 1) % len(texts)]
                if texts
                else f"Here is what I found out about {rng.choice(TOPICS)}."
            )
            messages.append({"role": "assistant", "content": reply})
        if side == "trajectory":
            arguments = texts[(i + 2) % len(texts)] if texts else '{"query": "opening hours"}'
            call = {"id": "c1", "type": "function", "function": {"name": "search", "arguments": arguments}}
            messages[1] = {"role": "assistant", "content": "", "tool_calls": [call]}
            messages.append({"role": "tool", "content": "Open from nine to five.", "name": "search"})
        extra = HOSTILE[i % len(HOSTILE)] if hostile else ""
        meta = ItemMeta(
            id=f"{suite}/{i:05d}{extra if i % 3 == 0 else ''}#{side}",
            suite=suite,
            side=side,  # type: ignore[arg-type]
            label="unsafe" if unsafe else "safe",
            categories=(category + extra,) if category else (),
            source=("written by hand", "public set")[i % 2] + (extra if i % 5 == 0 else ""),
            language=("en", "en", "en", "de")[i % 4],
            length=sum(len(m["content"]) for m in messages),
        )
        metas.append(meta)
        rows.append(
            {
                "id": meta.id,
                "suite": suite,
                "split": "calibrate" if i % 6 == 5 else "test",
                "side": side,
                "label": meta.label,
                "categories": list(meta.categories),
                "source": meta.source,
                "language": meta.language,
                "length": meta.length,
                "digest": f"{i:016x}",
                "messages": messages,
            }
        )
    return metas, rows


def _message(i: int, rng: random.Random) -> str:
    text = f"Message {i}: could you tell me more about {rng.choice(TOPICS)}?"
    return text + " And one more thing." * (rng.choice((0, 0, 0, 20, 90)))


def _score(item: ItemMeta, shift: float, rng: random.Random) -> float:
    centre = {"unsafe": 2.6, "safe": -3.0}[item.label] - shift
    if item.suite.startswith("refusal") and item.label == "safe":
        centre += 1.2
    return _logistic(rng.gauss(centre, 1.7))


def _moved(item: ItemMeta, score: float, collapse: float, rng: random.Random) -> float:
    hard = 1.5 if item.suite.startswith(("direct", "agent")) else 1.0
    fall = collapse * (3.0 * hard if item.label == "unsafe" else 1.5)
    return _logistic(_logit(score) - fall + rng.gauss(0, 0.3 + 0.9 * collapse))


def _logistic(x: float) -> float:
    from math import exp

    return 1 / (1 + exp(-x))


def _logit(p: float) -> float:
    from math import log

    return log(p / (1 - p))


def _guard(info: GuardInfo, items: list[ItemMeta], scores: list[float]) -> GuardResult:
    labels = [m.unsafe for m in items]
    return GuardResult(
        info=info,
        overall=measure(scores, labels, info.threshold, draws=40),
        slices=slices(items, scores, info.threshold, draws=20),
    )


def _info(name: str, hostile: bool) -> GuardInfo:
    return GuardInfo(
        name=name + (HOSTILE[3] if hostile else ""),
        reference="path:guards/" + name + (HOSTILE[4] if hostile else ""),
        family="keel",
        threshold=0.5,
        digest="9f2c" * 16,
        parameters=134_515_008,
        dtype="bfloat16",
        device="cpu",
    )


def _suite(name: str, items: list[ItemMeta]) -> SuiteInfo:
    unsafe = sum(m.unsafe for m in items)
    return SuiteInfo(
        name=name,
        version="1",
        digest="ab12" * 16,
        split="test",
        n=len(items),
        n_unsafe=unsafe,
        n_safe=len(items) - unsafe,
        licence="Apache-2.0",
        origin="written by the authors",
    )


def _layer(layer: int, layers: int, candidate: bool, collapse: float) -> LayerGeometry:
    t = layer / layers
    fell = collapse * t**2

    def measure_of(value: float, spread: float, null: tuple[float, float] | None = None) -> Measure:
        estimate = Estimate(value=value, low=value - spread, high=value + spread, n=200)
        if null is None:
            return Measure(estimate=estimate)
        return Measure(
            estimate=estimate, null_mean=null[0], null_high=null[1], p=0.005 if value > null[1] else 0.4
        )

    found = LayerGeometry(
        layer=layer,
        n=200,
        rank=8,
        separability_reference=measure_of(0.4 + 2.2 * t, 0.25, (0.02, 0.09)),
        probe_reference=measure_of(0.72 + 0.26 * t, 0.03, (0.5, 0.58)),
    )
    if not candidate:
        return found
    return found.model_copy(
        update={
            "separability_candidate": measure_of(0.4 + 2.2 * t - 1.9 * fell, 0.22, (0.02, 0.09)),
            "probe_candidate": measure_of(0.72 + 0.26 * t - 0.12 * fell, 0.04, (0.5, 0.58)),
            "cka": measure_of(1 - 0.45 * fell, 0.04, (0.0, 0.04)),
            "principal_angles": [8 + 40 * fell * k / 8 + 2 * k for k in range(8)],
            "overlap": measure_of(0.95 - 0.5 * fell, 0.05, (0.014, 0.03)),
            "drift": Estimate(
                value=0.05 + 0.6 * fell, low=0.04 + 0.55 * fell, high=0.06 + 0.66 * fell, n=200
            ),
            "drift_inside": measure_of(0.03 + 0.3 * fell, 0.03, (0.014, 0.03)),
        }
    )


def _write(
    directory: Path,
    results: AuditResults,
    rows: list[dict[str, Any]],
    verdicts: tuple[list[float | None], list[float | None] | None],
    hostile: bool,
) -> None:
    before, after = verdicts
    directory.mkdir(parents=True, exist_ok=True)
    _jsonl(directory / "items.jsonl", rows)
    _jsonl(
        directory / "reference.jsonl", [_verdict(r, s, hostile) for r, s in zip(rows, before, strict=True)]
    )
    if after is not None:
        _jsonl(
            directory / "candidate.jsonl", [_verdict(r, s, hostile) for r, s in zip(rows, after, strict=True)]
        )
    write_text(directory / "config.toml", 'reference = "path:guards/keel-135m"\nbatch_tokens = 4096\n')
    payload = HOSTILE[1] + HOSTILE[8] if hostile else ""
    write_record(
        directory,
        RunRecord(
            verb="audit",
            started_at="2026-03-02T09:15:04+00:00",
            finished_at="2026-03-02T09:19:41+00:00",
            guardkeel="0.1.0",
            command=[
                "guardkeel",
                "audit",
                "path:guards/keel-135m",
                "--against",
                "path:guards/keel-135m-bank" + payload,
            ],
            inputs={
                "reference" + payload: "9f2c" * 16,
                "candidate": "41d0" * 16,
                "suite refusal-pairs": "ab12" * 16,
            },
            config={
                "reference": "path:guards/keel-135m" + payload,
                "scoring": {"batch_tokens": 4096, "dtype": "bfloat16"},
            },
            seeds={"bootstrap": 0, "geometry": 0},
            versions={"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0"},
            hardware={"platform": "Linux x86_64" + payload, "cpus": 2, "threads": 1},
            timings={"load": 2.1, "score reference": 96.4, "score candidate": 97.0, "geometry": 21.8},
            counts={"items": len(rows), "tokens": 61_204},
            results=results.model_dump(mode="json"),
            not_measured=["fit split: not used by this audit", "languages other than en and de" + payload],
        ),
    )


def _verdict(row: dict[str, Any], score: float | None, hostile: bool) -> dict[str, Any]:
    payload = HOSTILE[5] if hostile else ""
    return {
        "id": row["id"],
        "unsafe": score,
        "unscored": "" if score is not None else "no verdict at the verdict position" + payload,
        "categories": ["Threat" + payload] if score is not None and score > 0.5 else [],
        "dropped": 12 if row["length"] > 1500 else 0,
    }


def _jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


__all__ = ["CATEGORIES", "HOSTILE", "MEGABYTE", "write_run"]
