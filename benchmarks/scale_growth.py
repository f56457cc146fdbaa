"""Time and memory as rows, layers and widths grow: an audit and a fuse."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from scale_parts import alone, megabytes, table

SUITES = ["keel-domain", "keel-contrast"]


def main(of: list[str], rows: list[int], layers: list[int], size: int) -> None:
    """All that is asked for, a table each."""
    if "audit" in of:
        found = [alone(audit, "keel-135m", n, None) for n in rows]
        table("An audit of keel-135m as rows grow", HEAD, [_row(items, *rest) for items, *rest in found])
        found = [alone(layered, n, rows[0]) for n in layers]
        table(
            "An audit of a tiny random guard as layers grow",
            ["layers", *HEAD[1:]],
            [_row(n, *rest) for n, (_, *rest) in zip(layers, found, strict=True)],
        )
    if "fuse" in of:
        grown = [(n, *alone(fuse, size, n, 1)) for n in (1, 2, 4)]
        table(f"A fuse by ties as layers grow from {size / 1e6:,.0f} MB", ["layers ×", *FUSED], _fused(grown))
        grown = [(n, *alone(fuse, size, 1, n)) for n in (1, 2)]
        table(
            f"A fuse by ties as tensors get wider from {size / 1e6:,.0f} MB",
            ["width ×", *FUSED],
            _fused(grown),
        )


HEAD = ["items", "seconds of scoring", "ms an item", "peak memory"]
FUSED = ["bytes a model", "seconds", "MB a second", "peak memory", "planned"]


def _row(what: int, seconds: float, peak: int, items: int) -> list[object]:
    return [what, f"{seconds:.1f}", f"{1000 * seconds / items:.1f}", megabytes(peak)]


def _fused(found: list[tuple[int, int, float, int, float]]) -> list[list[object]]:
    return [
        [
            n,
            megabytes(size),
            f"{seconds:.1f}",
            f"{size / seconds / 1e6:,.0f}",
            megabytes(peak),
            megabytes(planned),
        ]
        for n, size, seconds, peak, planned in found
    ]


def audit(reference: str, items: int, family: str | None) -> tuple[int, float, int, int]:
    """Items, seconds of scoring, peak memory, items."""
    from guardkeel.evaluation.config import AuditConfig
    from guardkeel.evaluation.run import run
    from guardkeel.models.devices import peak_memory

    config = AuditConfig(reference=reference, suites=SUITES, limit=items // 2, geometry=False, family=family)
    with tempfile.TemporaryDirectory() as out:
        run(config, Path(out) / "run")
        record = json.loads((Path(out) / "run" / "run.json").read_text())
        count = sum(1 for _ in (Path(out) / "run" / "items.jsonl").open())
    return count, record["timings"]["score reference"], peak_memory(), count


def layered(layers: int, items: int) -> tuple[int, float, int, int]:
    """The same of a tiny guard."""
    from guardkeel.models.tiny import make_tiny

    with tempfile.TemporaryDirectory() as home:
        return audit(str(make_tiny("llama", Path(home) / "tiny", layers=layers)), items, "keel")


def fuse(size: int, deeper: int, wider: int, processes: int = 1) -> tuple[int, float, int, float]:
    """Bytes of a model, seconds, peak memory, memory as planned."""
    from fuse_peers import Shape, make

    from guardkeel.fusion.config import FuseConfig
    from guardkeel.fusion.prepare import planned
    from guardkeel.fusion.run import fuse as run

    first = Shape.of_bytes(size)
    shape = Shape(first.hidden * wider, first.intermediate * wider, first.layers * deeper)
    with tempfile.TemporaryDirectory() as home:
        pair = [Path(home) / name for name in ("reference", "candidate")]
        for tuned, folder in enumerate(pair):
            alone(make, folder, shape, tuned)
        given = {"method": "ties", "diagnostics": False, "processes": processes}
        plan = planned(FuseConfig(candidates=[str(pair[1])], reference=str(pair[0]), **given))
        results = run(str(pair[1]), str(pair[0]), out=Path(home) / "out", **given)
    return 2 * shape.values, results.seconds, results.peak_memory, plan.memory
