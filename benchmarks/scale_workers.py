"""The same work by one worker and by two: time, memory, and that it comes to the same."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from scale_growth import SUITES, fuse
from scale_parts import alone, megabytes, table

COUNTS = (1, 2)


HEAD = ["workers", "seconds", "× as fast as the first", "beside"]


def main(of: list[str], items: int, steps: int, size: int) -> None:
    """All that is asked for, a table each."""
    if "fuse" in of:
        found = [alone(fuse, size, 1, 1, n) for n in COUNTS]
        rows = [
            _row(n, seconds, found[0][1], megabytes(peak))
            for n, (_, seconds, peak, _) in zip(COUNTS, found, strict=True)
        ]
        table(f"fuse ties, 2 × {size / 1e6:,.0f} MB, --processes", HEAD, rows)
    if "tune" in of:
        times = [tune(n, steps) for n in COUNTS]
        rows = [
            _row(n, seconds, times[0][0], f"last loss {loss:.4f}")
            for n, (seconds, loss) in zip(COUNTS, times, strict=True)
        ]
        table(f"tune kl, {steps} steps, ranks under torchrun", HEAD, rows)
    if "audit" in of:
        engines: list[tuple[str, list[str]]] = [("local", [])]
        if find_spec("ray"):
            engines += [(f"ray, {n}", ["--engine", "ray", "--workers", str(n)]) for n in COUNTS]
        else:
            print("\nray's rows are left out: pip install 'guardkeel[ray]'")
        done = [audit(items, options) for _, options in engines]
        rows = [
            _row(name, seconds, done[0][0], recall)
            for (name, _), (seconds, recall) in zip(engines, done, strict=True)
        ]
        table(f"audit, {items} items, whole command by engine", HEAD, rows)


def _row(workers: object, seconds: float, first: float, beside: str) -> list[object]:
    return [workers, f"{seconds:.1f}", f"{first / seconds:.2f}", beside]


def tune(ranks: int, steps: int) -> tuple[float, float]:
    """Seconds of all steps and the last loss of a fine-tune under torchrun."""
    with tempfile.TemporaryDirectory() as home:
        out = Path(home) / "run"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        arguments = [
            "keel-135m",
            "--data",
            "keel-domain",
            "--source",
            "bank",
            "--method",
            "kl",
            "--steps",
            str(steps),
            "--out",
            str(out),
        ]
        _run(
            [
                *launch,
                "-m",
                "guardkeel",
                "tune",
                *arguments,
                "--set",
                "monitor=[]",
                "--set",
                "recalibrate=false",
            ]
        )
        record = json.loads((out / "run.json").read_text())
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    return record["timings"]["steps"], losses[-1]


def audit(items: int, options: list[str]) -> tuple[float, str]:
    """Seconds of a whole audit, start of the engine included, and what it flagged."""
    with tempfile.TemporaryDirectory() as home:
        suites = [word for suite in SUITES for word in ("--suite", suite)]
        out = Path(home) / "run"
        common = ["--limit", str(items // 2), "--no-geometry", "--no-report", "--out", str(out)]
        started = time.perf_counter()
        _run([sys.executable, "-m", "guardkeel", "audit", "keel-135m", *suites, *common, *options], (0, 1, 3))
        seconds = time.perf_counter() - started
        rows = [json.loads(line) for line in (out / "reference.jsonl").read_text().splitlines()]
    scores = [row["unsafe"] for row in rows]
    return seconds, f"{sum(u is not None and u >= 0.5 for u in scores)} of {len(scores)} flagged at ½"


def _run(command: list[str], good: tuple[int, ...] = (0,)) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in good:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
