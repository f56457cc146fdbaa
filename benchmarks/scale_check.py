"""Plans beside the runs that they are of: predicted over measured, for time and peak memory.

On a machine that does other things too, look at the processor's time: the rate of products is then measured by it as
well. A fuse's plan has no rate in it but a piece that is fused, for a moment, which is compared with both.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from scale_parts import alone, megabytes, table

from guardkeel.planning.hardware import Hardware, here

GUARD = "keel-135m"
NEAR = (0.75, 1.25)


class Checked(NamedTuple):
    """Seconds by the clock, seconds of the processor, and bytes: planned and measured."""

    what: str
    planned: float
    seconds: float
    planned_processor: float
    processor: float
    memory: float
    peak: float
    drift: float
    """The machine's rate after the run over that before."""


def main(of: list[str], items: int, steps: int, size: int) -> None:
    """All that is asked for, as one table."""
    found: list[Checked] = []
    if "audit" in of:
        found.append(alone(audit, items))
    if "tune" in of:
        found += [alone(tune, method, steps) for method in ("plain", "kl")]
    if "fuse" in of:
        found += [alone(fuse, method, size) for method in ("interpolation", "ties")]
    head = [
        "run",
        *("seconds", "planned", "ratio"),
        *("of the processor", "planned", "ratio"),
        "memory",
        "planned",
    ]
    rows = [
        (
            c.what,
            *(f"{c.seconds:.1f}", f"{c.planned:.1f}", said(c.planned / c.seconds)),
            *(f"{c.processor:.1f}", f"{c.planned_processor:.1f}", said(c.planned_processor / c.processor)),
            *(megabytes(c.peak), megabytes(c.memory), said(c.memory / c.peak)),
            f"{c.drift:.2f}",
        )
        for c in found
    ]
    table("Plans beside runs", [*head, "ratio", "rate after / before"], rows)


def said(ratio: float) -> str:
    """A ratio, marked where it is too far from 1."""
    return f"{ratio:.2f}" + ("" if NEAR[0] <= ratio <= NEAR[1] else " (!)")


class Rated:
    """This machine as a plan has it, its rate the mean of before and after a run."""

    def __init__(self) -> None:
        self.first, self._first = here("auto"), processor_rate()
        self.dtype = max(self.first.flops, key=lambda kind: self.first.flops[kind])

    def again(self) -> tuple[Hardware, float, float]:
        """The hardware; by what to multiply its seconds to have the processor's; rate after / rate before."""
        last, own = here("auto"), (self._first + processor_rate()) / 2
        mean = {kind: (n + last.flops[kind]) / 2 for kind, n in self.first.flops.items()}
        drift = last.flops[self.dtype] / self.first.flops[self.dtype]
        return self.first.model_copy(update={"flops": mean}), mean[self.dtype] / own, drift


def processor_rate(seconds: float = 0.3) -> float:
    """Operations a second of the processor's time, of all threads: what waits for the processor does not count."""
    import torch

    from guardkeel.models.devices import pick_dtype

    kind = getattr(torch, pick_dtype("auto", "cpu"))
    a, b = torch.ones(512, 1024, dtype=kind), torch.ones(1024, 1024, dtype=kind)
    a @ b
    count, started = 0, time.process_time()
    while time.process_time() - started < seconds:
        a @ b
        count += 1
    return count * 2.0 * 512 * 1024 * 1024 / (time.process_time() - started)


class Clock:
    """A watch that keeps the processor's time at which each count of a piece of work was reached."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.seen: list[tuple[int, float]] = []

    def __call__(self, what: str, done: int, total: int | None) -> None:
        if what.startswith(self.what):
            self.seen.append((done, time.process_time()))

    def seconds(self, total: int) -> float:
        """Of so much work, by what was seen of it."""
        (first, begun), (last, ended) = self.seen[0], self.seen[-1]
        return (ended - begun) / (last - first) * total


def audit(items: int) -> Checked:
    """An audit of the embedded guard alone, without geometry: its scoring."""
    from guardkeel.evaluation.config import AuditConfig
    from guardkeel.evaluation.run import run
    from guardkeel.evaluation.selection import select
    from guardkeel.evaluation.suites import load_suite
    from guardkeel.guards.load import describe, guard_path
    from guardkeel.models.devices import peak_memory
    from guardkeel.planning.architecture import architecture
    from guardkeel.planning.scoring import Texts
    from guardkeel.planning.scoring import audit as planned

    config = AuditConfig(
        reference=GUARD, suites=["keel-domain", "keel-contrast"], limit=items, geometry=False
    )
    chosen = select([load_suite(s) for s in config.suites], limit=items, calibrate=False)
    encoder, folder = describe(guard_path(GUARD), GUARD)
    judged = [i.judgement for i in chosen]
    encoder.share(judged)
    texts = Texts(
        tokens=statistics.mean(len(encoder.encode(i).ids) for i in judged), policy=len(encoder.prefix_ids)
    )
    rated, clock = Rated(), Clock("score")
    with tempfile.TemporaryDirectory() as out:
        run(config, Path(out) / "run", watch=clock)
        seconds = json.loads((Path(out) / "run" / "run.json").read_text())["timings"]["score reference"]
    hardware, own, drift = rated.again()
    plan = planned(
        architecture(str(folder)),
        hardware,
        name=GUARD,
        dtype=rated.dtype,
        rows=len(chosen),
        guards=1,
        texts=texts,
    )
    expected = plan.seconds["score"] + plan.seconds["policy"]
    processor = clock.seconds(len(chosen))
    what = f"audit, {len(chosen)} items"
    return Checked(what, expected, seconds, expected * own, processor, plan.needed, peak_memory(), drift)


def tune(method: str, steps: int) -> Checked:
    """Steps of a fine-tune with LoRA; nothing is monitored."""
    from guardkeel.guards.load import describe, guard_path
    from guardkeel.planning.architecture import architecture
    from guardkeel.planning.scoring import Texts
    from guardkeel.planning.tuning import tune as planned
    from guardkeel.tuning.config import TuneConfig
    from guardkeel.tuning.estimate import estimate
    from guardkeel.tuning.gather import gather
    from guardkeel.tuning.run import run

    config = TuneConfig(
        guard=GUARD,
        data=["keel-domain"],
        source="bank",
        method=method,
        steps=steps,
        monitor=[],
        recalibrate=False,
    )
    known = estimate(config)
    encoder, folder = describe(guard_path(GUARD), GUARD)
    read = gather(config, lambda *a: None)
    encoder.share([t.judgement for t in (*read.guard, *read.task, *read.aside)])
    policy = len(encoder.prefix_ids)
    looked = config.guard_batch if known.guard_data else 0
    texts = Texts(tokens=(known.tokens - policy) / (config.batch + looked), policy=policy)
    rated, clock = Rated(), Clock("fine-tune")
    with tempfile.TemporaryDirectory() as out:
        results = run(config, Path(out) / "run", watch=clock)
        seconds = json.loads((Path(out) / "run" / "run.json").read_text())["timings"]["steps"]
    hardware, own, drift = rated.again()
    plan = planned(
        architecture(str(folder)),
        hardware,
        config,
        name=GUARD,
        dtype=rated.dtype,
        rows=known.rows,
        texts=texts,
    )
    expected, what = plan.seconds["steps"], f"tune {method}, {steps} steps"
    processor = clock.seconds(steps)
    return Checked(
        what, expected, seconds, expected * own, processor, plan.needed, results.peak_memory, drift
    )


def fuse(method: str, size: int) -> Checked:
    """A fuse of two checkpoints of noise, read from the disk, whose speed is measured first."""
    from fuse_peers import Shape, make

    from guardkeel.fusion.run import fuse as run
    from guardkeel.planning.architecture import architecture
    from guardkeel.planning.fusing import fuse as planned

    shape = Shape.of_bytes(size)
    with tempfile.TemporaryDirectory() as work:
        pair = [Path(work) / name for name in ("reference", "candidate")]
        for tuned, folder in enumerate(pair):
            alone(make, folder, shape, tuned)
        rated, disk = Rated(), disk_rate(Path(work) / "trial")
        for file in Path(work).rglob("*.safetensors"):
            forget(file)
        machine = rated.first.model_copy(update={"disk": disk})
        plan = planned(architecture(str(pair[0])), machine, name="noise", dtype="bfloat16", method=method)
        begun = time.process_time()
        results = run(str(pair[1]), str(pair[0]), method=method, out=Path(work) / "out", diagnostics=False)
        processor = time.process_time() - begun
        _, _, drift = rated.again()
    what = f"fuse {method}, 2 × {size / 1e6:,.0f} MB"
    return Checked(
        what, plan.time, results.seconds, plan.time, processor, plan.needed, results.peak_memory, drift
    )


def disk_rate(file: Path, size: int = 2**28) -> float:
    """Bytes a second: written and brought to the disk, and read again from there."""
    data, started = os.urandom(2**20), time.perf_counter()
    with file.open("wb") as out:
        for _ in range(size // len(data)):
            out.write(data)
        out.flush()
        os.fsync(out.fileno())
    seconds = time.perf_counter() - started
    forget(file)
    started = time.perf_counter()
    with file.open("rb") as read:
        while read.read(len(data)):
            pass
    seconds += time.perf_counter() - started
    file.unlink()
    return 2 * size / seconds


def forget(file: Path) -> None:
    """Let the system drop what it has in memory of a file."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
