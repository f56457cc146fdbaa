"""Fits the linear baseline on the `fit` and `calibrate` items of suites, for a leaderboard on their `test` items.

    python recipes/linear-baseline/fit.py --out runs/linear [--suite NAME …] [--data DIR]
    guardkeel leaderboard keel-135m runs/linear rules --suite NAME … --data DIR

Without --suite it takes every suite that guardkeel knows and finds in the data folder (--data or GUARDKEEL_DATA), and
its own. Give both commands the same suites: they are split together, so that no test text, nor one that is nearly the
same, was fitted on. Suites whose licence is not open are for evaluation on this machine: so is what was fitted on them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from guardkeel.errors import GuardkeelError
from guardkeel.evaluation.suites import Suite, available, load_suite, present, split_many
from guardkeel.guards.linear import fit_linear


def suites(names: list[str], data: Path | None) -> list[Suite]:
    """The named suites, or all that can be read without the network; one that cannot is told and left out."""
    if names:
        return [load_suite(name, data=data) for name in names]
    found = []
    for card in available():
        here = present(card, data)
        if here or card.name.startswith("keel-"):
            try:
                found.append(load_suite(here[0] if here else card.name, data=data, offline=True))
            except GuardkeelError as e:
                print(f"left out: {card.name}: {e.problem}")
    return found


def main() -> None:
    """Fit, write, and say on what."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the guard")
    parser.add_argument("--suite", action="append", default=[], help="a name, file or card; may be repeated")
    parser.add_argument("--data", type=Path, help="folder that data: references start from")
    given = parser.parse_args()
    guard = fit_linear(split_many(suites(given.suite, given.data)), given.out)
    for name, told in guard.provenance["suites"].items():
        print(f"{name:<32} fit {told['fit']:>6,}   calibrate {told['calibrate']:>6,}")
    print(f"fitted on {guard.provenance['fit']}, calibrated on {guard.provenance['calibrate']}")
    print(given.out)


if __name__ == "__main__":
    main()
