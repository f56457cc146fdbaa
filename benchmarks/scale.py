"""What guardkeel does as models, rows and workers grow, and whether `guardkeel plan` knew it before.

    python benchmarks/scale.py --check-plan [--items 200] [--steps 10] [--size 4e8] [--of audit,tune,fuse]
    python benchmarks/scale.py --growth [--rows 60,120,240] [--layers 2,4,8] [--size 2e8]
    python benchmarks/scale.py --workers [--of fuse,tune,audit]

Each part prints tables in Markdown. Every run is a process of its own, started anew; its memory is its largest resident
size, with that of the processes it starts where it says so.

--check-plan plans with the rate of products measured in the same process before and after the run (their mean), so that
other work on the machine falls on both; predicted over measured is to lie between 0.75 and 1.25. The plan is given what
a user knows: how many rows, and how long they are on average.

--growth: an audit as rows grow and as layers grow (a tiny random guard), a fuse as layers grow and as they get wider.

--workers: the same work by one and by two processes: fuse --processes, tune under torchrun, audit --engine ray.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def numbers(text: str) -> list[int]:
    """`60,120` as numbers."""
    return [int(float(n)) for n in text.split(",")]


def main() -> None:
    """The parts that are asked for, one after another."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check-plan", action="store_true", help="plans beside the runs")
    parser.add_argument("--growth", action="store_true", help="time and memory as rows and models grow")
    parser.add_argument("--workers", action="store_true", help="one and two workers")
    parser.add_argument("--of", help="audit, tune or fuse alone, with commas between")
    parser.add_argument("--items", type=int, default=200, help="of the audit of --check-plan and --workers")
    parser.add_argument("--steps", type=int, default=10, help="of tune")
    parser.add_argument("--size", type=float, default=4e8, help="bytes of a checkpoint to fuse")
    parser.add_argument("--rows", type=numbers, default=[60, 120, 240], help="of the audits of --growth")
    parser.add_argument("--layers", type=numbers, default=[2, 4, 8], help="of the guards of --growth")
    args = parser.parse_args()
    if not (args.check_plan or args.growth or args.workers):
        parser.error("take --check-plan, --growth or --workers")
    of = args.of.split(",") if args.of else ["audit", "tune", "fuse"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{cores} cores, load {os.getloadavg()[0]:.1f} before", flush=True)
    if args.check_plan:
        import scale_check

        scale_check.main(of, args.items, args.steps, int(args.size))
    if args.growth:
        import scale_growth

        scale_growth.main(of, args.rows, args.layers, int(args.size))
    if args.workers:
        import scale_workers

        scale_workers.main(of, args.items, args.steps, int(args.size))
    print(f"load {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
