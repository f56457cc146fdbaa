"""Trains the vision tower that guardkeel brings, on its own drawings alone.

    python recipes/drawn-tower/train.py --out src/guardkeel/vision/data/drawn [--pictures 80000]

A quarter of an hour of one core. The same seed gives the same drawings; weights agree as far as a processor's
arithmetic does.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from guardkeel.vision.tower import train_tower


def main() -> None:
    """Train, write, and say what it knows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=80_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    def watch(done: int, total: int) -> None:
        if done % 25 == 0 or done == total:
            print(f"{done}/{total}", file=sys.stderr, flush=True)

    card = train_tower(given.out, pictures=given.pictures, seed=given.seed, watch=watch)
    print(card.model_dump_json(indent=1, include={"pictures", "accuracy", "kinds"}))


if __name__ == "__main__":
    main()
