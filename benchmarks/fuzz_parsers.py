"""Random and broken outputs for every guard family's parser, as many as fit into the time; counts a family.

    python benchmarks/fuzz_parsers.py [--seconds 60] [--seed 0] [--family wildguard]

Every output is a published form of the family after one to four changes (cut, joined, reordered, other case,
look-alike letters, fences, prose, doubled keys …) or pieces of such forms strung together. What the parser calls safe,
a recogniser that was written apart from it (tests/verdict_grammars.py) must call safe too. One that it does not is
printed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from verdict_grammars import TOKENS, grammar, mutate, variants, wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="time for all families together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", action="append", help="only this one; may be given again")
    given = parser.parse_args()
    cases = [
        (name, family, side)
        for name, family in variants().items()
        for side in family.sides
        if not given.family or family.name in given.family
    ]
    if not cases:
        parser.error(f"no such family; there are {', '.join(sorted(variants()))}")
    failures = 0
    print(f"{'family':<32}{'side':<12}{'strings':>12}{'safe':>10}{'unsafe':>10}{'unscored':>12}{'wrong':>7}")
    total: Counter[str] = Counter()
    for name, family, side in cases:
        counts, bad = fuzz(family, side, given.seconds / len(cases), given.seed)
        failures += len(bad)
        total.update(counts)
        row(name, side, counts)
        for output, why in bad[:3]:
            print(f"  {why}: {output!r:.200}")
    row("all", "", total)
    return 1 if failures else 0


def fuzz(family: object, side: str, seconds: float, seed: int) -> tuple[Counter[str], list[tuple[str, str]]]:
    """Counts of verdicts, and the outputs that were read wrongly."""
    chance = random.Random(f"{seed} {family.name} {side}")  # type: ignore[attr-defined]
    samples = grammar(family)[1]
    counts: Counter[str] = Counter()
    bad = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for _ in range(200):
            if chance.random() < 0.8:
                output = mutate(chance, chance.choice(samples), samples)
            else:
                output = "".join(chance.choices(TOKENS, k=chance.randint(0, 8)))
            why = wrong(family, side, output)
            counts["strings"] += 1
            if why:
                counts["wrong"] += 1
                bad.append((output, why))
            unsafe = None if why.startswith("raised") else family.parse(output, side).unsafe  # type: ignore[attr-defined]
            counts["unscored" if unsafe is None else "unsafe" if unsafe else "safe"] += 1
    return counts, bad


def row(name: str, side: str, counts: Counter[str]) -> None:
    """One line of the table."""
    numbers = "".join(
        f"{counts[key]:>{width},}"
        for key, width in (("strings", 12), ("safe", 10), ("unsafe", 10), ("unscored", 12), ("wrong", 7))
    )
    print(f"{name:<32}{side:<12}{numbers}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
