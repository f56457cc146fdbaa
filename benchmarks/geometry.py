"""What geometry adds to an audit: the same audit with and without it, in turns.

    python benchmarks/geometry.py [--guard keel-135m] [--limit 100] [--pairs 5]

Prints the median ratio of whole audits (scoring, statistics, files; no model loading) and of scoring alone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from guardkeel.evaluation.audit import Source, audit_guards
from guardkeel.evaluation.config import DEFAULT_SUITES
from guardkeel.evaluation.settings import AuditSettings
from guardkeel.evaluation.suites import load_suite
from guardkeel.guards.load import load_checkpoint


def main() -> None:
    """Time both, in turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--guard", default="keel-135m")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    guard = load_checkpoint(args.guard)
    suites = [load_suite(name) for name in DEFAULT_SUITES]
    source = {"reference": Source(reference=args.guard, digest="")}
    ratios = []
    for turn in range(args.pairs + 1):
        seconds = {}
        for geometry in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                settings = AuditSettings(limit=args.limit, geometry=geometry)
                started = time.perf_counter()
                audit_guards(
                    [("reference", guard)], suites, Path(folder) / "run", sources=source, settings=settings
                )
                seconds[geometry] = time.perf_counter() - started
        if turn:
            ratios.append(seconds[True] / seconds[False])
            print(
                f"without {seconds[False]:.2f} s, with {seconds[True]:.2f} s, ratio {ratios[-1]:.3f}",
                flush=True,
            )
    print(f"median ratio {statistics.median(ratios):.3f} over {len(ratios)} pairs")


if __name__ == "__main__":
    main()
