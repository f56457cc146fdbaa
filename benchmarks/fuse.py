"""Fusing checkpoints: guardkeel beside `cp` and mergekit, on the same files, time and peak memory of whole processes.

    python benchmarks/fuse.py [--size 1e9] [--pairs 5] [--work DIR] [--ways "cp,guardkeel ties"]
    python benchmarks/fuse.py --mergekit VENV/bin/python
    python benchmarks/fuse.py --growth

mergekit lives in an environment of its own, as it pins other versions: `python -m venv VENV`, then
`VENV/bin/pip install mergekit==0.1.5`. Without --mergekit its rows are left out.

Two checkpoints are made, llama-like, bfloat16, sharded, the second the first with noise on it. Every way is a command
that a user would type; it is timed from its start to its end, start-up included, and its memory is the largest resident
size of the process and of those that it started. The ways take turns, each second turn backwards; the first turn only
warms up, so that the files lie in the system's cache for all. Before each turn what the last one wrote is removed and
the disk is at rest. A ratio is the median over the turns.

`cp` returns when the system has taken the bytes; guardkeel returns when they are on the disk, so `cp, and on the disk`
is shown beside it. guardkeel's cache is emptied before each turn: it hashes all inputs each time. Diagnostics, which no
other tool makes, are off save in the row that names them.

--growth doubles the layers twice and prints what guardkeel's peak memory does.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from fuse_peers import CP, LIMITS, OURS, Job, Shape, Way, make, ways


@dataclass
class Measured:
    """A way, and what its turns took: seconds, and bytes at their peak."""

    way: Way
    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


def take(way: Way, job: Job) -> tuple[float, int]:
    """One turn: seconds from start to end, and the largest resident size in bytes.

    This process stays small, as a child counts what it was before it became another program.
    """
    for leftover in (job.out, job.cache):
        shutil.rmtree(leftover, ignore_errors=True)
    command = way.command(job)
    os.sync()
    log = job.work / "log.txt"
    with log.open("wb") as out:
        started = time.perf_counter()
        child = subprocess.Popen(
            command, stdout=out, stderr=out, env=os.environ | {"GUARDKEEL_CACHE": str(job.cache)}
        )
        _, status, used = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{way.name}: {' '.join(command)}\n{log.read_text('utf-8', 'replace')[-2000:]}")
    return seconds, used.ru_maxrss * 1024


def measure(chosen: list[Way], job: Job, pairs: int) -> dict[str, Measured]:
    """Turns of all ways, each second one backwards; the first only warms up."""
    found = {way.name: Measured(way) for way in chosen}
    for turn in range(pairs + 1):
        for each in list(found.values())[:: -1 if turn % 2 else 1]:
            seconds, memory = take(each.way, job)
            if turn:
                each.seconds.append(seconds)
                each.memory.append(memory)
    return found


def report(found: dict[str, Measured]) -> None:
    """Seconds, ratios to cp and memory; then how the tools compare."""
    base = found.get(CP)
    print(f"\n{'':36} seconds   × cp: median (smallest to largest)    peak memory")
    for name, each in found.items():
        said = " " * 37
        if base:
            low, middle, high = _ratios(each, base)
            said = f"{middle:7.2f} ({low:.2f} to {high:.2f})".ljust(37)
        print(f"{name:36} {statistics.median(each.seconds):7.2f}   {said} {max(each.memory) / 1e6:6,.0f} MB")
    for ours, theirs, least in LIMITS:
        if ours in found and theirs in found:
            low, middle, high = _ratios(found[theirs], found[ours])
            memory = max(found[theirs].memory) / max(found[ours].memory)
            print(
                f"{ours} against {theirs}: {middle:.2f} × as fast ({low:.2f} to {high:.2f}), wanted "
                f"{least:g}; {memory:.1f} × less memory"
            )


def _ratios(each: Measured, base: Measured) -> tuple[float, float, float]:
    """Smallest, median and largest of the turns' ratios."""
    found = [a / b for a, b in zip(each.seconds, base.seconds, strict=True)]
    return min(found), statistics.median(found), max(found)


def growth(work: Path, size: int) -> None:
    """Peak memory as the layers double."""
    ours = [way for name, way in ways(None).items() if name in OURS]
    first = Shape.of_bytes(size)
    print(f"\n{'layers':>6} {'checkpoint':>12}   " + "   ".join(f"{way.name:>24}" for way in ours))
    for times in (1, 2, 4):
        shape = Shape(first.hidden, first.intermediate, first.layers * times)
        job = prepared(work / f"layers-{shape.layers}", shape)
        said = "   ".join(f"{take(way, job)[1] / 1e6:21,.0f} MB" for way in ours)
        print(f"{shape.layers:6} {2 * shape.values / 1e6:9,.0f} MB   {said}", flush=True)
        shutil.rmtree(job.work)


def prepared(work: Path, shape: Shape) -> Job:
    """The checkpoints, made where they are not there, in another process: this one is to stay small."""
    job = Job(work / "reference", (work / "candidate",), work)
    for tuned, folder in enumerate((job.reference, *job.candidates)):
        child = multiprocessing.get_context("spawn").Process(target=make, args=(folder, shape, tuned))
        child.start()
        child.join()
        if child.exitcode:
            raise SystemExit(f"{folder}: could not be made")
    return job


def main() -> None:
    """Make checkpoints, take turns, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=float, default=1e9, help="bytes of a checkpoint")
    parser.add_argument("--pairs", type=int, default=5, help="turns")
    parser.add_argument("--work", type=Path, help="keep the checkpoints there; default: a temporary folder")
    parser.add_argument("--mergekit", type=Path, help="python of the environment that mergekit is in")
    parser.add_argument("--ways", help="names of some rows, with commas between")
    parser.add_argument("--growth", action="store_true", help="peak memory as the layers double")
    args = parser.parse_args()
    every = ways(args.mergekit)
    chosen = [name.strip() for name in args.ways.split(",")] if args.ways else list(every)
    unknown = [name for name in chosen if name not in every]
    if unknown:
        parser.error(f"no way {unknown[0]!r}: take {', '.join(every)}")
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        if args.growth:
            growth(work, int(args.size))
            return
        shape = Shape.of_bytes(int(args.size))
        print(
            f"{2 * shape.values / 1e6:,.0f} MB each: {shape.layers} layers, hidden {shape.hidden}, "
            f"vocabulary {shape.vocabulary:,}; {len(os.sched_getaffinity(0))} cores",
            flush=True,
        )
        report(measure([every[name] for name in chosen], prepared(work, shape), args.pairs))


if __name__ == "__main__":
    main()
