"""The dossier: what an entry costs, what checking a chain costs, what a look at a stream costs.

    python benchmarks/dossier.py [--entries 5000] [--rows 200000] [--store URL]

    append      records a second, one and a hundred to a transaction; SQLite waits for the disk at every commit
    read        entries a second from the store into records
    verify      entries a second, every hash computed again
    bundle      seconds to write one, and to check it
    sequential  rows a second of one stream's e-process at every row

Everything runs in one process; memory is the peak of it.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from guardkeel.dossier.bundle import check, write
from guardkeel.dossier.dossier import create, open_dossier
from guardkeel.dossier.dsse import read_public
from guardkeel.dossier.kinds import Evaluator
from guardkeel.dossier.monitoring.sequential import betting, rise
from guardkeel.dossier.verifying import verify


def timed(what: Callable[[], object]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    what()
    return time.perf_counter() - started


def people(start: int, count: int) -> list[Evaluator]:
    """Records that are all new."""
    return [
        Evaluator(id=f"e{i}", name=f"evaluator {i}", party="third", independent_of_development=True)
        for i in range(start, start + count)
    ]


def main() -> None:
    """Measure, and print a table."""
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("--entries", type=int, default=5000)
    said.add_argument("--rows", type=int, default=200_000)
    said.add_argument("--store", default="")
    given = said.parse_args()
    rows: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with create(place / "d", "benchmark", "me", store=given.store) as dossier:
            single = min(200, given.entries)
            seconds = timed(lambda: [dossier.record(people(i, 1), "me") for i in range(single)])
            rows.append(("append, one a transaction", f"{single / seconds:,.0f}/s"))
            left = given.entries - single
            seconds = timed(
                lambda: [dossier.record(people(i, 100), "me") for i in range(single, single + left, 100)]
            )
            if left > 0:
                rows.append(("append, 100 a transaction", f"{left / seconds:,.0f}/s"))
        with open_dossier(place / "d") as dossier:
            rows.append(("read", f"{given.entries / timed(lambda: dossier.state):,.0f}/s"))
            rows.append(
                ("verify", f"{given.entries / timed(lambda: verify(dossier.store.entries())):,.0f}/s")
            )
            rows.append(("bundle, write", f"{timed(lambda: write(dossier, place / 'b')):.2f} s"))
            key = [read_public(place / "d" / "dossier.key.pub")]
            rows.append(("bundle, check", f"{timed(lambda: check(place / 'b', key)):.2f} s"))
            size = sum(p.stat().st_size for p in (place / "b").rglob("*") if p.is_file())
            rows.append(("bundle, size", f"{size / 1e6:.1f} MB for {given.entries:,} entries"))
    hits = np.cumsum(np.random.default_rng(0).random(given.rows) < 0.1)
    counts = np.arange(1, given.rows + 1)
    rows.append(
        ("proportion, every row", f"{given.rows / timed(lambda: rise(hits, counts - hits, 0.1)):,.0f}/s")
    )
    values = np.random.default_rng(1).random(given.rows)
    weights = np.ones(given.rows)
    rows.append(
        ("betting, every row", f"{given.rows / timed(lambda: betting(values, weights, 0.5, 1.0)):,.0f}/s")
    )
    rows.append(("peak memory", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB"))
    for name, value in rows:
        print(f"{name:<28}{value}")


if __name__ == "__main__":
    main()
